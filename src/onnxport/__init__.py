"""onnxport: from a PyTorch Transformer to an application on ONNX Runtime.

from onnxport import load
model = load("artifacts/en-de", precision="int8")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxport.telemetry import switch_off

if TYPE_CHECKING:
    from onnxport.runtime import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

switch_off()  # before anything of ours can import onnxruntime


def __getattr__(name: str) -> Any:
    # Imported when it is first used: `import onnxport` costs nothing.
    if name == "load":
        from onnxport.runtime import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
