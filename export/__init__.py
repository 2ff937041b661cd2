"""Export of a PyTorch Transformer to standard ONNX with golden answers. Only this room uses torch, which is imported when first needed."""

from typing import TYPE_CHECKING, Any

from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq

if TYPE_CHECKING:
    from onnxport.export.exported import Exported
    from onnxport.export.stages import export

__all__ = ["CausalLM", "Encoder", "Exported", "Module", "Seq2Seq", "export"]
_LAZY = {"export": "onnxport.export.stages", "Exported": "onnxport.export.exported"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
