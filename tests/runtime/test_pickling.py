"""A loaded model pickles as its path and options: it opens again in another place of the process, and in another process."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path

import pytest

from onnxport.errors import UsageError
from onnxport.runtime import Model, load


def answer(model: Model) -> tuple[list[int], int]:
    return model.generate("w5 w9", max_new_tokens=9)[0].tokens, model.threads


def test_a_model_opens_again_from_its_pickle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    with load(tiny_bundle.name, precision="fp32", threads=1) as model:
        data = pickle.dumps(model)
        expected = answer(model)
    assert len(data) < 500
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert answer(again) == expected and again.precision == "fp32"
    with pytest.raises(UsageError, match="closed"):
        pickle.dumps(model)


def test_a_spawned_process_gets_a_model_of_its_own(tiny_bundle: Path) -> None:
    call = methodcaller("generate", "w5 w9", max_new_tokens=9)
    with load(tiny_bundle, threads=1) as model, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(call, model).result(60) == call(model)
