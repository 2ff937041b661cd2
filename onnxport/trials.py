"""Variants that are made only to be measured, in a bundle in the making."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from onnxport.quantize import choice, store
from onnxport.quantize.apply import quantize
from onnxport.quantize.calibrate import Feeds
from onnxport.quantize.plan import Plan
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.staging import Staging
from onnxport.variants import Graphs


class Trials:
    """base: the float32 graphs that plans are carried out on. let_go: called when a variant is a file."""

    def __init__(self, staging: Staging, base: Graphs, feeds: Feeds, let_go: Callable[[], None]) -> None:
        self._staging, self._base, self._feeds, self._let_go = staging, base, feeds, let_go

    @contextmanager
    def made(self, plans: Mapping[str, Plan]) -> Iterator[Bundle]:
        """The bundle with a variant for each plan, by names that no precision has; they are gone when the block ends."""
        manifest = self._staging.manifest
        assert manifest is not None
        try:
            for name, plan in plans.items():
                models, became = quantize(self._base, plan, self._feeds)
                if "decoder" in models:
                    models = models | {"decoder": choice.add_choice(models["decoder"])}
                folder = self._staging.path / name
                graphs = {role: f"{name}/{file}" for role, file in store.write(models, folder).items()}
                del models
                self._let_go()
                files = sorted(f"{name}/{file.name}" for file in folder.iterdir())
                manifest["variants"][name] = {
                    "files": files, "graphs": graphs, "target": "cpu", "plan": became, "fusions": {}, "parity": {},
                }  # fmt: skip
            yield self._staging.preview()
        finally:
            for name in plans:
                manifest["variants"].pop(name, None)
                shutil.rmtree(self._staging.path / name, ignore_errors=True)
