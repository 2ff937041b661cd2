"""A bundle as a model of MLflow: what its class makes of configurations and inputs, and what is logged. MLflow itself is not needed."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxport.errors import DataError, UsageError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """onnxport's module over a stand-in for MLflow's: a base class, and a function that keeps what it is given."""
    stand_in, pyfunc = ModuleType("mlflow"), ModuleType("mlflow.pyfunc")
    pyfunc.PythonModel = object  # type: ignore[attr-defined]
    pyfunc.log_model = lambda **given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", pyfunc)
    monkeypatch.delitem(sys.modules, "onnxport.integrations.mlflow", raising=False)
    import importlib

    yield importlib.import_module("onnxport.integrations.mlflow")
    sys.modules.pop("onnxport.integrations.mlflow", None)


def loaded(module: Any, path: Path, **config: Any) -> Any:
    model = module.OnnxportModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(path)}, model_config=config))
    return model


def test_it_answers_as_the_bundle(mlflow: Any, bundle: Bundle) -> None:
    model = loaded(mlflow, bundle.path, precision="fp32", threads=1, options={"max_new_tokens": 4})
    with load(bundle.path, precision="fp32", threads=1) as plain:
        texts = [one.text for one in plain.generate(["a b c", "one two"], max_new_tokens=4)]
        shorter = plain.generate("a b c", max_new_tokens=2)[0].tokens
    for given in (
        ["a b c", "one two"],
        np.array(["a b c", "one two"], object),
        [{"text": "a b c"}, {"text": "one two"}],
        Frame(line=["a b c", "one two"]),
    ):
        answers = model.predict(None, given)
        assert [one["text"] for one in answers] == texts
        assert set(answers[0]) == {"text", "tokens", "score", "finish_reason"}
    assert [one["text"] for one in model.predict(None, "one two")] == texts[1:]
    assert model.predict(None, ["a b c"], {"max_new_tokens": 2})[0]["tokens"] == shorter


class Frame:
    """What is read of pandas' DataFrame."""

    def __init__(self, **columns: list[str]) -> None:
        self.columns, self._rows = list(columns), [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_dict(self, kind: str) -> list[dict[str, str]]:
        assert kind == "records"
        return self._rows


@pytest.mark.parametrize("given", [[3], [{"line": "a"}], [{"text": "a", "pair": "b"}], [{"text": 1}], Frame(text=["a"], more=["b"])])
def test_inputs_of_another_form_are_refused(mlflow: Any, bundle: Bundle, given: Any) -> None:
    with pytest.raises(DataError, match="expected a text"):
        loaded(mlflow, bundle.path).predict(None, given)


def test_a_tensor_bundle_takes_arrays_by_name(mlflow: Any) -> None:
    model = mlflow.OnnxportModel()
    model.model = SimpleNamespace(task="tensor", run=lambda arrays: {"y": 2 * arrays["x"]})
    assert model.predict(None, {"x": np.ones(2)})["y"].tolist() == [2, 2]
    with pytest.raises(DataError, match="found list, expected a dictionary of arrays"):
        model.predict(None, [1.0])


def test_a_configuration_that_is_not_known_is_refused(mlflow: Any, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="colour is not known, expected some of precision"):
        loaded(mlflow, bundle.path, colour="red")


def test_what_is_logged(mlflow: Any, bundle: Bundle) -> None:
    given = mlflow.log_model(bundle.path, "tiny", precision="fp32", options={"beam": 2}, registered_model_name="tiny")
    assert given["artifacts"] == {"bundle": str(bundle.path.resolve())} and given["registered_model_name"] == "tiny"
    assert given["model_config"] == {"precision": "fp32", "device": "cpu", "threads": None, "options": {"beam": 2}}
    assert "set_model(OnnxportModel())" in Path(given["python_model"]).read_text()
    assert given["pip_requirements"][0].startswith("onnxport[cpu,mlflow]==") and given["metadata"]["task"] == "translation"


def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "onnxport.integrations.mlflow", raising=False)
    with pytest.raises(UsageError, match=r"onnxport\[mlflow\]"):
        import onnxport.integrations.mlflow  # noqa: F401
