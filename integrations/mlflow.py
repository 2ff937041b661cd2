"""Bundles as models of MLflow (extra `mlflow`): logged with their files, loaded by `mlflow.pyfunc`, served by `mlflow models serve`.

from onnxport.integrations.mlflow import log_model
info = log_model("artifacts/en-de", name="en-de", precision="int8")
mlflow.pyfunc.load_model(info.model_uri).predict(["How are you?"])       # [{"text": "Wie geht es dir?", ...}]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxport import __version__
from onnxport.errors import DataError, UsageError
from onnxport.extras import require
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.model import load
from onnxport.serve.tasks import TASKS, Task

pyfunc = require("mlflow.pyfunc", "mlflow", "a model of MLflow")
BUNDLE = "bundle"  # the artifact's name
_CODE = Path(__file__).with_name("mlflow_code.py")  # logged as text: nothing is pickled
LOADED_WITH = ("precision", "device", "threads", "draft", "prefix_cache_mb", "batch_rows", "batch_cache_mb")


class OnnxportModel(pyfunc.PythonModel):  # type: ignore[name-defined]
    """A bundle that answers through MLflow: its artifact `bundle` is the folder.

    The model's configuration (`model_config`) may have what `onnxport.load` takes (precision, device, threads, ...), and `options` of the
    task's method. Every file's hash is checked as it is loaded.
    """

    def load_context(self, context: Any) -> None:
        """Loads the bundle. UsageError: a key of the configuration is not known; errors of `onnxport.load`."""
        given = dict(context.model_config or {})
        self.options = dict(given.pop("options", None) or {})
        if unknown := sorted(set(given) - set(LOADED_WITH)):
            raise UsageError(f"model_config: {unknown[0]} is not known, expected some of {', '.join((*LOADED_WITH, 'options'))}")
        self.model = load(context.artifacts[BUNDLE], verify=True, **given)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow would read a signature from types
        """Answers, one for each input, as `onnxport run --json` tells them; of a tensor bundle arrays by name.

        model_input: a text or a list of them; a list of objects or a DataFrame with `text` (and `pair`), or `question` and `context`; of a
        tensor bundle arrays by name. params: options of the task's method, over those of the configuration.
        DataError: another form; UsageError: an option; TextError: a text.
        """
        if self.model.task == "tensor":
            if not isinstance(model_input, Mapping):
                raise DataError(f"found {type(model_input).__name__}, expected a dictionary of arrays")
            return self.model.run(dict(model_input))
        task = TASKS[self.model.task]
        arguments = task.arguments([_input(one, task) for one in _listed(model_input)])
        results = getattr(self.model, task.method)(**arguments, **{**self.options, **(params or {})})
        return [task.told(one) for one in results]


def log_model(
    path: str | Path,
    name: str,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Log the bundle at `path` as a model of MLflow's current run, and give MLflow's ModelInfo.

    precision, device, threads: as in `onnxport.load`. options: of the task's method, for every call. more: further arguments of
    `mlflow.pyfunc.log_model`, such as registered_model_name. BundleError: there is no whole bundle.
    """
    bundle = Bundle.open(path, verify=True)
    config = {"precision": precision, "device": device, "threads": threads, "options": dict(options or {})}
    more.setdefault("pip_requirements", [f"onnxport[{'gpu' if device == 'cuda' else 'cpu'},mlflow]=={__version__}"])
    more.setdefault("metadata", {"task": bundle.task, "family": bundle.family, "variants": list(bundle.variants)})
    return pyfunc.log_model(name=name, python_model=str(_CODE), artifacts={BUNDLE: str(bundle.path.resolve())}, model_config=config, **more)


def _listed(given: Any) -> list[Any]:
    """Inputs as a list: texts or objects."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a DataFrame of pandas
        rows: list[Any] = given.to_dict("records")
        return [next(iter(row.values())) for row in rows] if len(given.columns) == 1 else rows
    if isinstance(given, str | Mapping):
        return [given]
    return list(given)


def _input(one: Any, task: Task) -> tuple[str, ...]:
    """The texts of an input in the order of its members. DataError."""
    members = (*task.inputs, *task.optional)
    if isinstance(one, str) and len(task.inputs) == 1:
        return (one,)
    if isinstance(one, Mapping) and set(task.inputs) <= set(one) <= set(members) and all(isinstance(text, str) for text in one.values()):
        return tuple(one[name] for name in members if name in one)
    expected = "a text" if members == ("text",) else f"texts by name: {', '.join(task.inputs)}"
    raise DataError(f"found {one!r:.80} among the inputs, expected {expected}" + "".join(f", perhaps {name}" for name in task.optional))
