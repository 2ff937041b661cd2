"""Optional packages are imported when they are needed; one that is missing is named with the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from onnxport.errors import UsageError, one_line


def require(module: str, extra: str, purpose: str = "this command", *others: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its full name, such as `jinja2.sandbox`.
        extra: the extra of onnxport that installs it.
        purpose: who needs it, as the subject of the message.
        others: extras that install it as well.

    Raises:
        UsageError: the module, or one that it imports, cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "onnxport":
            raise
        how = " or ".join(f"'onnxport[{one}]'" for one in (extra, *others))
        raise UsageError(
            f"{purpose} needs {module.partition('.')[0]} ({one_line(error)}): pip install {how}; in a clone, '.[{extra}]'"
        ) from error
