"""The thin runtime: loads a bundle and answers from it. Imports neither torch nor onnx.

from onnxport.runtime import load
model = load("artifacts/en-de", precision="int8")
model.generate(["How are you?"], beam=4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxport.runtime.decode.generator import Generation
    from onnxport.runtime.model import Model, load

__all__ = ["Generation", "Model", "load"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `import onnxport.runtime.bundle.reader` must not cost numpy and tokenizers.
    if name in ("Model", "load"):
        from onnxport.runtime import model

        return getattr(model, name)
    if name == "Generation":
        from onnxport.runtime.decode.generator import Generation

        return Generation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
