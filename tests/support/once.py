"""Things that take long to make, such as exported bundles, are made once in a run, whatever the number of workers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from pytest import TempPathFactory


def made_once(factory: TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which all workers read and none changes; `make` fills it when the first of them asks for it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a failure left behind
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
