"""Import of Hugging Face's transformers, whose progress bars and remarks are hidden and whose errors become CheckpointErrors."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.export.user_code import silence
from onnxport.extras import require

OTHER_CODE = ("auto_map",)  # what sends loaders to another class than that of the model_type


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


def unread_keys(model_type: str, names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that nothing reads where a config.json of this type is loaded: transformers' configuration class has no attribute
    of the name, and neither its source, nor that of the models, nor what loads any model speaks of it."""
    names = set(names)
    if not names:
        return frozenset()
    import_transformers()
    from transformers import modeling_utils
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with quiet():
        cls = CONFIG_MAPPING[model_type]
        known = {*vars(cls()), *dir(cls), *cls.attribute_map, *OTHER_CODE}
    package = cls.__module__.rpartition(".")[0]
    sources = [_source(cls.__module__), _source(modeling_utils.__name__)]
    sources += [_source(f"{package}.modeling_{package.rpartition('.')[2]}")]
    if "modeling_rope_utils" in sources[-1]:
        sources.append(_source("transformers.modeling_rope_utils"))
    text = "\n".join(sources)
    return frozenset(name for name in names - known if not re.search(rf"""[.'"]{re.escape(name)}\b""", text))


def _source(module: str) -> str:
    """Of a module that need not be imported; empty where there is none."""
    found = find_spec(module)
    return "" if found is None or found.origin is None else Path(found.origin).read_text(encoding="utf-8")


def encoder_output(memory: Any) -> Any:
    """What an encoder of transformers gives, of a memory [batch, source, hidden] alone; some decoders read the router's logits in it."""
    from transformers.modeling_outputs import BaseModelOutput

    found = BaseModelOutput(last_hidden_state=memory)
    found.router_logits = None
    return found
