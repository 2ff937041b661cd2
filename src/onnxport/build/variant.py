"""VariantBuilder makes one variant at a time: its graphs, the check of what ONNX Runtime makes of them, the check of its answers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxport.build.contents import GOLDEN, add_device_search, add_note
from onnxport.build.request import BuildOptions, own_cache
from onnxport.build.shared_files import owned, share
from onnxport.errors import CheckFailed, NotApplicable, UsageError
from onnxport.graph import store
from onnxport.progress import Progress
from onnxport.quantize import calibration_inputs, layer_errors
from onnxport.quantize.calibration_inputs import Feeds, calibration_row_count
from onnxport.quantize.fusion import check_runs, min_onnxruntime
from onnxport.quantize.plan import CACHES, KV, Plan, read_plan
from onnxport.quantize.precisions import Precision, device_of, made_as
from onnxport.quantize.recipe import Graphs, Recipe, VariantGraphs, make_graphs
from onnxport.quantize.schemes.finished import Finished
from onnxport.quantize.schemes.int8_cache import ROOM_WITHOUT_TEXTS
from onnxport.quantize.targets.kernels import cast_on_cpu, missing
from onnxport.quantize.targets.retarget import keeps_windows_alone, retargeted
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle import manifest as parse
from onnxport.runtime.bundle.variant_names import CPU as CPU_TARGET
from onnxport.runtime.bundle.variant_names import WEB as WEB_TARGET
from onnxport.runtime.bundle.variant_names import split
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.sessions import CPU, CUDA, required_device
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.verify import DEVICE, check_bounds, replay

PLAN = "plan.json"
IN_FLOAT32 = "in_float32"  # key of a parity: kernels that the CPU, which checked it, has in float32 alone
NO_TEXTS = (
    f"scales of {CACHES[0]} caches are told by the golden inputs, random ids, and hold {ROOM_WITHOUT_TEXTS:g} times what these showed: "
    "--calibrate FILE finds them on texts"
)

READS_PAIRS = ("classification", "multiple-choice", "question-answering")  # tasks whose models may read two texts at once


@dataclass(frozen=True)
class FusedGraphs:
    """Graphs in float32 that variants are made from.

    graphs: role → onnx_ir.Model. fusions: fusion rule → how often it was applied, in all graphs together. expected: role → rule → how often
    its kernel must be in the graph that ONNX Runtime runs.
    """

    graphs: Graphs
    fusions: dict[str, int]
    expected: dict[str, dict[str, int]] = field(default_factory=dict)


class VariantBuilder:
    """Adds variants to a bundle in the making.

    search_folder: where an interrupted search finds its measurements. release_weights: called when a variant is a file, before ONNX Runtime
    loads it; None where weights are in no file to read them again from.
    """

    def __init__(
        self,
        staging: Staging,
        fused: FusedGraphs,
        options: BuildOptions,
        search_folder: Path,
        progress: Progress,
        release_weights: Callable[[], None] | None = None,
    ) -> None:
        self.staging, self.fused, self.options, self.progress = staging, fused, options, progress
        self.search_folder, self.release_weights = search_folder, release_weights or (lambda: None)
        self.goldens = staging.path / GOLDEN
        self._feeds: dict[int, Feeds] = {}
        self._kit: Feeds | None = None

    def add(self, name: str, finished: Finished | None = None) -> None:
        """Make the variant of a precision for a target, whole: files, manifest entry, checks. finished: see `Recipe`.

        Raises:
            DataError, UsageError; nothing of it is left: ParityError, FusionError, NotApplicable, GateError (no plan is in the budget).
        """
        precision, evidence = made_as(name), dict[str, Any]()
        plan = self._read_plan(precision.searched)
        if own_cache(name) and plan is not None and plan.kv is not None:
            raise UsageError(f"{self.options.plan}: {name} keeps its own cache; leave {KV} out of the plan, or name another precision")
        feeds = None if self.options.calibrate is None else lambda: self._calibration_feeds(precision)
        kv = None if own_cache(name) else self.options.kv
        recipe = Recipe(
            precision.name,
            plan or self._plan_for_cpu(name, precision),
            feeds,
            None if feeds is not None and not self._is_language_model else self._texts(),
            kv,
            self._positions,
            split(name)[1],
            finished=finished,
        )
        if precision.searched and plan is None:
            plan, evidence = self._search(precision, recipe)
            recipe = replace(recipe, plan=plan)
        self.progress(f"make and check {name}")
        try:
            self._make(name, precision, recipe, evidence)
            if recipe.cache is not None and recipe.feeds is None and recipe.texts is None:
                add_note(self.staging, NO_TEXTS)
        except CheckFailed:
            self._remove(name)
            raise

    def _remove(self, name: str) -> None:
        """What was written of a variant that failed."""
        assert self.staging.manifest is not None
        variants = self.staging.manifest["variants"]
        if name in variants:
            for file in owned(name, variants):
                (self.staging.path / file).unlink(missing_ok=True)
            del variants[name]
        used = {file for entry in variants.values() for file in entry["files"]}
        if not any(file.startswith(f"{name}/") for file in used):
            shutil.rmtree(self.staging.path / name, ignore_errors=True)

    def _read_plan(self, searched: bool) -> Plan | None:
        """The given plan; that of a searched precision is calibrated on the data that the search read."""
        if self.options.plan is None:
            return None
        plan = read_plan(self.options.plan)
        if plan.needs and self.options.calibrate is None and (searched or self._texts() is None):
            raise UsageError(f"{self.options.plan}: the plan has schemes that are calibrated on data: give --calibrate FILE")
        return plan

    def _plan_for_cpu(self, name: str, precision: Precision) -> Plan | None:
        """What the recipe of a language model found for the CPU, where a variant for another target has the same recipe: which weights are
        sensitive does not depend on the target, and takes most of the time to tell."""
        assert self.staging.manifest is not None
        made = self.staging.manifest["variants"].get(precision.name)
        if made is None or name == precision.name or precision.on_texts is None or not self._is_language_model or self._texts() is None:
            return None
        return Plan({weight: scheme for weight, scheme in made["plan"].items() if weight != KV})

    def _calibration_feeds(self, precision: Precision) -> Feeds:
        """Calibration inputs of each graph, through the fp32 variant; a search leaves half of the data to be measured on."""
        data = self.options.calibrate
        assert data is not None
        rows = calibration_row_count(data) if precision.searched else calibration_inputs.MOST
        if rows not in self._feeds:
            self.progress("read calibration data")
            self._feeds[rows] = calibration_inputs.feeds(self.staging.preview(), data, rows)
        return self._feeds[rows]

    def _texts(self) -> Callable[[], Feeds] | None:
        """What gives calibration inputs made of the kit's texts; None but for encoders of texts and language models that know them."""
        if self._is_language_model:
            return self._kit_of_a_decoder if self._knows_texts else None
        return (lambda: self._kit_of_an_encoder) if self._kit_of_an_encoder else None

    @property
    def _is_language_model(self) -> bool:
        return set(self.fused.graphs) == {"decoder"}

    @cached_property
    def _kit_of_an_encoder(self) -> Feeds:
        manifest = self.staging.manifest
        assert manifest is not None
        names = list(manifest["tokenizers"].values())
        if len(self.fused.graphs) > 1 or not names:
            return {}
        ((role, model),) = self.fused.graphs.items()
        encoding, pairs = parse.encoding(manifest["encoding"]), manifest["task"] in READS_PAIRS
        found = calibration_inputs.kit_encoder_feeds(encoding, self.staging.path / names[0], model, pairs)
        return {role: found} if found else {}

    def _kit_of_a_decoder(self) -> Feeds:
        if self._kit is None:
            manifest, folder = self.staging.manifest, self.staging.path
            assert manifest is not None
            generation, chat = parse.generation(manifest["generation"]), parse.chat(manifest["chat"])
            assert generation is not None
            template = None if chat is None else ChatTemplate.parse((folder / chat.template).read_bytes(), chat.tokens)
            tokenizer = folder / next(iter(manifest["tokenizers"].values()))
            self._kit = calibration_inputs.kit_feeds(generation, tokenizer, template, self.fused.graphs["decoder"])
        return self._kit

    @property
    def _positions(self) -> int | None:
        generation = None if self.staging.manifest is None else self.staging.manifest["generation"]
        return None if generation is None else generation["max_length"]

    @cached_property
    def _knows_texts(self) -> bool:
        return golden.TEXT in golden.read(self.goldens)

    def _search(self, precision: Precision, recipe: Recipe) -> tuple[Plan, dict[str, Any]]:
        from onnxport.quantize.auto.measurements import PlanInputs, SearchOptions
        from onnxport.quantize.auto.search import search_plan

        options, feeds = self.options, self._calibration_feeds(precision)
        assert options.calibrate is not None
        search = SearchOptions(options.budget, options.calibrate, options.data, options.threads, self.search_folder, precision.bounds)
        inputs = PlanInputs(recipe, self.fused.graphs, feeds, self.goldens)
        result = search_plan(search, self.staging, inputs, self.release_weights, self.progress)
        return result.plan, result.evidence

    def _make(self, name: str, precision: Precision, recipe: Recipe, evidence: dict[str, Any]) -> None:
        """Make, write and check a variant; the manifest names it as soon as its files are there. evidence: see `Variant`.

        What is made for another target is made of graphs that are as its ONNX Runtime wants them.
        """
        fused, fusion_target = self.fused, split(name)[1]
        if fusion_target != CPU_TARGET:
            retargeted_graphs, more = retargeted(fused.graphs, fusion_target)
            fused = FusedGraphs(retargeted_graphs, fused.fusions | more, fused.expected)
        made = make_graphs(recipe, fused.graphs, self.goldens)
        if fusion_target != CPU_TARGET and (gaps := missing(made.models, fusion_target)):
            raise NotApplicable(f"{fusion_target} has no kernel for {', '.join(gaps)}")
        target = device_of(made.plan) if fusion_target == CPU_TARGET else fusion_target
        device = (required_device(target) if fusion_target == CPU_TARGET else None) or CPU
        graphs, files = self._write(name, made)
        if device is CPU and fusion_target == CPU_TARGET and set(made.plan.entries.values()) != {"fp32"}:
            layers = layer_errors.growth(self.fused.graphs, made.models, self.goldens)
            evidence = evidence | {"layers": [one for one in layers if math.isfinite(one["relative_error"])]}
        oldest = min_onnxruntime(made.models, fusion_target)
        plan, undone, in_float32 = made.plan.entries, made.undone, cast_on_cpu(made.models)
        fusions = {rule: count for rule, count in fused.fusions.items() if rule not in undone}
        del made
        self.release_weights()
        variant: dict[str, Any] = {
            "files": files,
            "graphs": graphs,
            "target": target,
            "plan": plan,
            "fusions": fusions,
            "parity": {},
            "evidence": evidence,
        }
        if oldest is not None:
            variant["min_onnxruntime"] = oldest
        if fusion_target != CPU_TARGET and keeps_windows_alone(self.fused.graphs):
            variant["whole_caches"] = True
        assert self.staging.manifest is not None
        self.staging.manifest["variants"][name] = variant
        if fusion_target == CUDA.name:
            add_device_search(self.staging)
        for role, kernels in fused.expected.items() if device is CPU else ():
            wanted = {rule: count for rule, count in kernels.items() if rule not in undone}
            check_runs(self.staging.path / graphs[role], wanted, fusion_target)
        parity = replay(self.staging.preview(), name, device.name)
        bounds = precision.bounds.of(parity)
        check_bounds(name, bounds, parity, "leave it out with --precision, or report this if it is fp32")
        elsewhere = {} if fusion_target == CPU_TARGET else {DEVICE: device.name, IN_FLOAT32: in_float32}
        variant["parity"] = {**parity, "bounds": bounds, **elsewhere}

    def _write(self, name: str, made: VariantGraphs) -> tuple[dict[str, str], list[str]]:
        """Write graphs and plan to the variant's folder; role → path of its graph, and all paths, relative to the bundle."""
        folder = self.staging.path / name
        folder.mkdir(exist_ok=True)
        graphs = store.write(made.models, folder, store.PART if split(name)[1] == WEB_TARGET else None)
        (folder / PLAN).write_text(made.plan.dumps(), encoding="utf-8")
        paths = {role: f"{name}/{file}" for role, file in graphs.items()}
        if split(name)[1] == CPU_TARGET:
            return paths, sorted(f"{name}/{file.name}" for file in folder.iterdir())
        assert self.staging.manifest is not None
        return share(self.staging.path, name, paths, self.staging.manifest["variants"])
