"""Import of Hugging Face's transformers, whose progress bars and remarks are hidden and whose errors become CheckpointErrors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError, UsageError, one_line
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
    from transformers import utils

    logging: Any = utils.logging  # without types

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
    """Whatever transformers raises over a folder is a CheckpointError with its message on one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # its validation raises many kinds
        raise CheckpointError(f"transformers refuses {folder}: {type(error).__name__}: {one_line(error)}") from error
