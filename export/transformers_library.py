"""Hugging Face's transformers, imported only for its families and kept from talking."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError, UsageError
from onnxport.export.user_code import silence
from onnxport.extras import require


def import_transformers() -> Any:
    """The module; UsageError when it is not there, or too old."""
    with silence():
        transformers = require("transformers", "export", "this folder")
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UsageError(f"this folder needs transformers 5 and {transformers.__version__} is installed; install onnxport[export]")
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and remarks off the user's terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with silence():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Whatever transformers raises over a folder is a CheckpointError with its first line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # its validation raises many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"transformers refuses {folder}: {type(error).__name__}: {' '.join(lines)[:300]}") from error
