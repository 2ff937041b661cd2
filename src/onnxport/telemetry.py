"""ONNX Runtime's telemetry is off: from 1.32 on its wheels write under ~/.cache/Microsoft and look up a host, unless told not to.

It reads the environment once, while it is imported: so `onnxport` says so as it is imported itself, and the processes that it starts
inherit it. Who wants the telemetry sets the variable to 0.
"""

from __future__ import annotations

import os
import re
import sys
import warnings

SWITCH = "ORT_DISABLE_TELEMETRY"


def switch_off() -> None:
    """Switch it off for this process and those that it starts, where the user has not said otherwise; warn where that comes too late."""
    if os.environ.get(SWITCH):
        return
    os.environ[SWITCH] = "1"
    if _since_132(str(getattr(sys.modules.get("onnxruntime"), "__version__", ""))):
        warnings.warn(
            f"onnxruntime was imported before onnxport and without {SWITCH}=1 in the environment, so that its telemetry may be on "
            f"in this process; import onnxport first, or set {SWITCH}=1 (0 keeps the telemetry, without this warning)",
            RuntimeWarning,
            stacklevel=3,
        )


def _since_132(version: str) -> bool:
    """Whether a version is one whose wheels have it."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 32)


def state() -> str:
    """What a user should know, in a few words."""
    value = os.environ.get(SWITCH)
    return "off" if value == "1" else f"not switched off ({SWITCH} is {value or 'not set'})"
