"""Making a variant: its graphs by a plan, the check of what ONNX Runtime makes of them, the check of its answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport import bounds
from onnxport.errors import UsageError
from onnxport.quantize import calibrate, fusion, store
from onnxport.quantize.plan import Plan, read_plan
from onnxport.runtime.parity import replay
from onnxport.runtime.staging import Staging
from onnxport.variants import Graphs, Wish, graphs_of

if TYPE_CHECKING:
    from onnxport.quantize.calibrate import Feeds

GOLDEN = "golden.npz"
PLAN = "plan.json"


class Making:
    """Adds variants to a bundle in the making.

    fused: graphs in float32, and `fusions` how often each rule was applied. expected: what must be found in the graphs that run, by role.
    data: calibration data. let_go: called when a variant is a file, before ONNX Runtime loads it. progress: told each stage.
    """

    def __init__(
        self,
        staging: Staging,
        fused: Graphs,
        fusions: dict[str, int],
        expected: dict[str, dict[str, int]],
        data: Path | None,
        let_go: Callable[[], None],
        progress: Callable[[str], None],
    ) -> None:
        self.staging, self.fused, self.fusions, self.expected = staging, fused, fusions, expected
        self.data, self.let_go, self.progress = data, let_go, progress

    @cached_property
    def feeds(self) -> Feeds:
        """Calibration inputs of each graph, through the fp32 variant. DataError."""
        assert self.data is not None
        bundle = self.staging.preview()
        if "fp32" not in bundle.variants:
            raise UsageError("calibration goes through the fp32 variant: add fp32 to --precision")
        self.progress("read calibration data")
        return calibrate.feeds(bundle, self.data)

    def add(self, precision: str, plan: Path | None = None, budget: str | None = None) -> None:
        """One variant, whole: files, manifest entry, checks. ParityError, FusionError, CheckpointError, DataError, UsageError."""
        chosen: Plan | None = None if plan is None else read_plan(plan)
        if chosen is not None and chosen.needs and self.data is None:
            raise UsageError(f"{plan}: the plan has schemes that are calibrated on data: give --calibrate FILE")
        self.progress(f"make and check {precision}")
        self.make(Wish(precision, chosen, (lambda: self.feeds) if self.data is not None else None))

    def make(self, wish: Wish) -> None:
        """Carries out a wish; the manifest names the variant as soon as its files are there."""
        precision, staging = wish.precision, self.staging
        models, became = graphs_of(wish, self.fused, staging.path / GOLDEN)
        folder = staging.path / precision
        folder.mkdir(exist_ok=True)
        graphs = {role: f"{precision}/{name}" for role, name in store.write(models, folder).items()}
        (folder / PLAN).write_text(Plan(became).dumps(), encoding="utf-8")
        del models
        self.let_go()
        for role, wanted in self.expected.items():
            fusion.check_runs(staging.path / graphs[role], wanted)
        assert staging.manifest is not None
        variant: dict[str, Any] = {
            "files": sorted(f"{precision}/{file.name}" for file in folder.iterdir()),
            "graphs": graphs,
            "target": "any" if set(became.values()) <= {"fp32", "fp16"} else "cpu",
            "plan": became,
            "fusions": self.fusions,
            "parity": {},
        }
        staging.manifest["variants"][precision] = variant
        variant["parity"] = bounds.check(precision, replay(staging.preview(), precision))
