"""The look-alike of transformers' pipeline, without that package; answers are held against it by `make test-drop-in`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.errors import UsageError
from onnxport.integrations.transformers import pipeline
from onnxport.runtime import load
from support import tiny_encoder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "labels"
    return tiny_encoder.write(out, "classification", tiny_encoder.table(3), labels=["bad", "fair", "good"], max_length=8)


def test_forms_of_inputs_and_results(labels: Path) -> None:
    made = pipeline("text-classification", model=labels, threads=1)
    with load(labels, threads=1) as model:
        best = [{"label": one.label, "score": pytest.approx(one.scores[one.label])} for one in model.classify(["a b", "c"])]
        every = [[{"label": name, "score": pytest.approx(score)} for name, score in one.scores.items()] for one in model.classify(["a b"])]
    assert made("a b") == best[:1] and made(["a b", "c"]) == best and made(("a b", "c")) == best
    assert made("a b", top_k=None) == every[0] and made(["a b"], top_k=None) == every
    assert list(made(text for text in ("a b", "c"))) == best and made([]) == []
    assert pipeline(model=labels, top_k=1)(["a b", "c"]) == [[one] for one in best]


def test_what_is_not_followed_is_named(labels: Path) -> None:
    with pytest.raises(UsageError, match="text-classification: fast is not followed"):
        pipeline("text-classification", model=labels, fast=True)
    with pytest.raises(UsageError, match="this bundle's is classification; expected text-classification or zero-shot-classification"):
        pipeline("fill-mask", model=labels)
    with pytest.raises(UsageError, match="model is None"):
        pipeline("fill-mask")
    with pytest.raises(UsageError, match="batch_size is 0"):
        pipeline(model=labels)(["a"], batch_size=0)


def test_it_needs_neither_torch_nor_transformers(labels: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from onnxport.integrations.transformers import pipeline\n"
        f"print(len(pipeline(model={str(labels)!r})('a b', top_k=None)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "3\n", run.stderr
