"""The tiny translation model and its bundle, made once in a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onnxport.runtime.bundle.reader import Bundle

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: tiny models gain nothing from threads


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support import translation_folder

    return translation_folder.write_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from onnxport.build.stages import build

    return build(str(model_folder), tmp_path_factory.mktemp("bundles") / "tiny")
