"""Exported models that many tests read, each made once in a run, and which tests a worker runs together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.once import made_once

if TYPE_CHECKING:
    from onnxport.runtime.bundle.reader import Bundle

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests may import onnxruntime before onnxport
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: tiny models gain nothing from threads


# These files read the traced models of tests/export/conftest.py.
TRACED = ("canonical/test_graphs.py", "reference/test_model.py", "routes/test_direct.py", "trace/test_trace.py")


@pytest.hookimpl(optionalhook=True)  # some environments run tests without pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs all tests of a file, for they share its fixtures, and one the files of the traced models."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "traced" if file.endswith(TRACED) else file

    return Files(config, log)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny translation model, not yet exported."""
    from support import translation_folder

    return made_once(tmp_path_factory, "model", lambda made: translation_folder.write_model(made / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle, in the usual precisions."""
    from onnxport.build.stages import build
    from onnxport.runtime.bundle.reader import Bundle

    return Bundle.open(made_once(tmp_path_factory, "bundle", lambda made: build(str(model_folder), made / "tiny")) / "tiny")


@pytest.fixture(scope="session")
def plain_bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle as `onnxport export --precision fp32,int8-weight` makes it."""
    from onnxport.runtime.bundle.reader import Bundle
    from support.commands import invoke

    def make(made: Path) -> None:
        result = invoke("export", model_folder, "--out", made / "tiny", "--precision", "fp32,int8-weight", "-q")
        assert result.exit_code == 0, result.output

    return Bundle.open(made_once(tmp_path_factory, "plain", make) / "tiny")


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the shipped model in `en-de`, as docs/quick-start.md makes it, and what the command printed in `printed.txt`."""
    from support.commands import invoke
    from support.paths import EXAMPLE

    def make(made: Path) -> None:
        result = invoke("export", EXAMPLE, "--out", made / "en-de")
        assert result.exit_code == 0, result.output
        (made / "printed.txt").write_text(result.stdout, encoding="utf-8")

    return made_once(tmp_path_factory, "example", make)


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian model whose answers depend on its inputs, in `source`, and its bundle of fp32 and int8 in `bundle`."""

    def make(made: Path) -> None:
        from transformers import MarianMTModel

        from onnxport.build.stages import build
        from support import hf_folders

        own = {"num_beams": 4, "bad_words_ids": [[96]], "renormalize_logits": True, "max_length": 15, "length_penalty": 0.8}
        hf_folders.marian(made / "source", seed=3, generation=own)
        tuned = MarianMTModel.from_pretrained(made / "source")
        tuned.final_logits_bias[0, 0] += 0.5  # so that ends come early and late
        tuned.save_pretrained(made / "source")
        build(made / "source", made / "bundle", precision=("fp32", "int8"))

    return made_once(tmp_path_factory, "marian", make)
