"""Bundles on Ray, for more than one machine: classes for `Dataset.map_batches`, and the HTTP server as an application of Ray Serve.

from onnxport.integrations.ray import Generate
dataset.map_batches(Generate, fn_constructor_args=("artifacts/en-de",), concurrency=8, num_cpus=4, batch_size=64)

A batch is a dict of arrays. Texts are read from column `text`, or the one that `column=` names, and answers are added as column `output`.
A model's threads are the CPUs that its actor was granted. The bundle must lie under the same path on every node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import DataError
from onnxport.extras import require
from onnxport.runtime.model import load
from onnxport.serve.tasks import TASKS, Task

Batch = dict[str, np.ndarray]


class _Worker:
    """A model of an actor, and the columns that it reads and writes.

    path: the bundle. precision, device: as in `onnxport.load`. column: what is read, of tasks that read one text. output: what is written.
    threads: of one operator; None is what Ray granted the actor. options: those of the model's method.
    Errors: those of `onnxport.load`; a call's: DataError (a column is missing), and those of the method.
    """

    method = ""
    reads: tuple[str, ...] = ("text",)

    def __init__(
        self,
        path: str | Path,
        precision: str | None = None,
        *,
        device: str = "cpu",
        column: str | None = None,
        output: str = "output",
        threads: int | None = None,
        **options: Any,
    ) -> None:
        self._model = load(path, precision=precision, device=device, threads=granted() if threads is None else threads)
        self._columns = self.reads if column is None else (column, *self.reads[1:])
        self._output, self._options = output, options

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its answers."""
        if lacking := [name for name in self._columns if name not in batch]:
            raise DataError(f"the batch has the columns {', '.join(batch)}, expected {lacking[0]}; name it with column=")
        texts = [batch[name].tolist() for name in self._columns]
        found = getattr(self._model, self.method)(**self._arguments(texts), **self._options)
        return {**batch, self._output: self._told(found)}

    def _arguments(self, texts: list[list[str]]) -> dict[str, Any]:
        return {"texts": texts[0]}

    def _told(self, found: Any) -> np.ndarray:
        """Answers as a column: dicts with the members that `onnxport run --json` tells."""
        return column([_task(self.method).told(one) for one in found])


class Generate(_Worker):
    """Translates, summarizes or continues texts; `output` is text. options: those of `Model.generate`."""

    method = "generate"

    def _arguments(self, texts: list[list[str]]) -> dict[str, Any]:
        return {"inputs": texts[0]}

    def _told(self, found: Any) -> np.ndarray:
        return column([one.text for one in found])


class Encode(_Worker):
    """Vectors of texts; `output` is float32 [size]. options: those of `Model.encode`."""

    method = "encode"

    def _told(self, found: Any) -> np.ndarray:
        return np.asarray(found)


class Classify(_Worker):
    """Labels of texts; `output` has `label`, `scores` by label and `labels`. options: those of `Model.classify`."""

    method = "classify"


class Entities(_Worker):
    """Entities of texts; `output` is a list of `label`, `score`, `start`, `end`, `text`. options: those of `Model.entities`."""

    method = "entities"

    def _told(self, found: Any) -> np.ndarray:
        return column([_task(self.method).told(one)["entities"] for one in found])


class Fill(_Worker):
    """The best tokens for the masks of texts; `output` is a list of them. options: those of `Model.fill`."""

    method = "fill"

    def _told(self, found: Any) -> np.ndarray:
        return column([_task(self.method).told(one)["fills"] for one in found])


class Answer(_Worker):
    """Answers to the questions of column `question` (or `column=`) in the texts of column `context`. options: those of `Model.answer`."""

    method = "answer"
    reads = ("question", "context")

    def _arguments(self, texts: list[list[str]]) -> dict[str, Any]:
        return {"question": texts[0], "context": texts[1]}


def application(
    bundles: Sequence[str],
    *,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    api_key_file: Path | None = None,
    prefix_cache_mb: int | None = None,
    batch_rows: int | None = None,
    batch_cache_mb: int | None = None,
    limits: Any = None,
    **deployment: Any,
) -> Any:
    """The server of `onnxport serve` as an application for `ray.serve.run`: the same routes, limits and keys in every replica.

    bundles: paths, or NAME=PATH, on every node. threads: None is what Ray granted the replica. limits: an onnxport.serve.limits.Limits.
    deployment: the options of `ray.serve.deployment`, such as num_replicas and ray_actor_options={"num_cpus": 4};
    max_ongoing_requests is the limit on requests at once unless it is given.
    Errors: UsageError where the extra `ray` is not installed; those of `onnxport.serve.server.serve` in a replica as it starts.
    """
    serve = require("ray.serve", "ray", "an application of Ray Serve")
    require("starlette", "serve", "an application of Ray Serve")
    from onnxport.serve.limits import Limits

    given, bounds = list(bundles), limits or Limits()

    def built() -> Any:
        from onnxport.serve.app import app
        from onnxport.serve.keys import Keys
        from onnxport.serve.models import Models
        from onnxport.serve.service import Service

        models = Models.open(
            given, precision, device, granted() if threads is None else threads, prefix_cache_mb,
            batch_rows=batch_rows, batch_cache_mb=batch_cache_mb,
        )  # fmt: skip
        return app(Service(models, bounds, Keys.read(api_key_file)))

    class Onnxport:
        """A replica: the server's own application answers."""

    options = {"max_ongoing_requests": bounds.requests} | deployment  # Ray's own default, 5, would leave batches small
    return serve.deployment(**options)(serve.ingress(built)(Onnxport)).bind()


def granted() -> int | None:
    """The CPUs that Ray granted this actor, at least one; None outside of Ray, or where it granted none."""
    ray = require("ray", "ray", "this class")
    if not ray.is_initialized():
        return None
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return max(1, int(cpus)) if cpus else None


def column(values: Sequence[Any]) -> np.ndarray:
    """Values of any kind as a column, one a row."""
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found


def _task(method: str) -> Task:
    return next(task for task in TASKS.values() if task.method == method)


__all__ = ["Answer", "Classify", "Encode", "Entities", "Fill", "Generate", "application", "granted"]
