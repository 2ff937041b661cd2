from pathlib import Path

import pytest

from onnxport.runtime import Model, load
from support import tiny_bundles as tiny


@pytest.fixture(scope="session")
def seq2seq() -> tiny.TinyModel:
    return tiny.TinyModel("seq2seq")


@pytest.fixture(scope="session")
def causal() -> tiny.TinyModel:
    return tiny.TinyModel("causal", seed=1)


@pytest.fixture(scope="session")
def tiny_bundle(seq2seq: tiny.TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("tiny") / "seq2seq", seq2seq)


@pytest.fixture(scope="session")
def causal_bundle(causal: tiny.TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("tiny") / "causal", causal)


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def causal_model(causal_bundle: Path) -> Model:
    return load(causal_bundle, threads=1)
