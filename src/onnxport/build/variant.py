"""Making a variant: its graphs by a plan, the check of what ONNX Runtime makes of them, the check of its answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.build.request import Given
from onnxport.errors import UsageError
from onnxport.graph import store
from onnxport.quantize import calibration_inputs, fusion, layer_errors, precisions
from onnxport.quantize.calibration_inputs import calibrated_on
from onnxport.quantize.plan import Plan, read_plan
from onnxport.quantize.recipe import Graphs, Wish, graphs_of, smoothed
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.verify import replay

if TYPE_CHECKING:
    from onnxport.quantize.calibration_inputs import Feeds


GOLDEN = "golden.npz"
PLAN = "plan.json"
AUTO = "auto"


class Making:
    """Adds variants to a bundle in the making.

    fused: graphs in float32, and `fusions` how often each rule was applied. expected: what must be found in the graphs that run, by role.
    let_go: called when a variant is a file, before ONNX Runtime loads it. progress: told each stage.
    """

    def __init__(
        self,
        staging: Staging,
        fused: Graphs,
        fusions: dict[str, int],
        expected: dict[str, dict[str, int]],
        given: Given,
        let_go: Callable[[], None],
        progress: Callable[[str], None],
    ) -> None:
        self.staging, self.fused, self.fusions, self.expected = staging, fused, fusions, expected
        self.given, self.let_go, self.progress = given, let_go, progress
        self._feeds: dict[int, Feeds] = {}

    def feeds(self, precision: str) -> Feeds:
        """Calibration inputs of each graph, through the fp32 variant; `auto` leaves half of the data to be measured on. DataError."""
        data = self.given.calibrate
        assert data is not None
        most = calibrated_on(data) if precision == AUTO else calibration_inputs.MOST
        if most not in self._feeds:
            self.progress("read calibration data")
            self._feeds[most] = calibration_inputs.feeds(self.staging.preview(), data, most)
        return self._feeds[most]

    def add(self, precision: str, plan: Path | None = None) -> None:
        """One variant, whole: files, manifest entry, checks.

        ParityError, FusionError, CheckpointError, DataError, UsageError; GateError: no plan is within the budget.
        """
        chosen: Plan | None = None if plan is None else read_plan(plan)
        if chosen is not None and chosen.needs and self.given.calibrate is None:
            raise UsageError(f"{plan}: the plan has schemes that are calibrated on data: give --calibrate FILE")
        evidence: dict[str, Any] = {}
        if precision == AUTO and chosen is None:
            chosen, evidence = self._search()
        self.progress(f"make and check {precision}")
        self.make(Wish(precision, chosen, (lambda: self.feeds(precision)) if self.given.calibrate is not None else None), evidence)

    def _search(self) -> tuple[Plan, dict[str, Any]]:
        from onnxport.quantize.auto.measurements import Request
        from onnxport.quantize.auto.search import choose

        given = self.given
        assert given.calibrate is not None
        feeds = self.feeds(AUTO)
        request = Request(given.budget, given.calibrate, given.evaluate, given.threads, given.search)
        graphs = smoothed(self.fused, feeds, self.staging.path / GOLDEN)
        found = choose(request, self.staging, graphs, feeds, self.let_go, self.progress)
        return found.plan, found.evidence

    def make(self, wish: Wish, evidence: dict[str, Any]) -> None:
        """Carries out a wish; the manifest names the variant as soon as its files are there. evidence: see `Variant`."""
        precision, staging = wish.precision, self.staging
        models, became = graphs_of(wish, self.fused, staging.path / GOLDEN)
        folder = staging.path / precision
        folder.mkdir(exist_ok=True)
        graphs = {role: f"{precision}/{name}" for role, name in store.write(models, folder).items()}
        (folder / PLAN).write_text(Plan(became).dumps(), encoding="utf-8")
        device = "cuda" if "bf16" in became.values() else "cpu"
        if set(became.values()) != {"fp32"} and device == "cpu":
            layers = layer_errors.growth(self.fused, models, staging.path / GOLDEN)
            evidence = evidence | {"layers": [one for one in layers if math.isfinite(one["relative_error"])]}
        del models
        self.let_go()
        for role, wanted in self.expected.items() if device == "cpu" else ():
            fusion.check_runs(staging.path / graphs[role], wanted)
        assert staging.manifest is not None
        variant: dict[str, Any] = {
            "files": sorted(f"{precision}/{file.name}" for file in folder.iterdir()),
            "graphs": graphs,
            "target": "any" if set(became.values()) <= {"fp32", "fp16"} else device,
            "plan": became,
            "fusions": self.fusions,
            "parity": {},
            "evidence": evidence,
        }
        staging.manifest["variants"][precision] = variant
        variant["parity"] = precisions.check(precision, replay(staging.preview(), precision, device))
