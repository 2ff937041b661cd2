"""Comparisons of a bundle's variants with each other and with the original.

    from onnxport.compare import compare
    report = compare("artifacts/en-de", "test.tsv", gates=["bleu_drop<=0.5"], out="artifacts/report")

Every side (a variant, the original in PyTorch, a peer) runs in a process of its own behind one protocol, so that memory and start-up are
its own and one comparator serves all.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxport.compare.comparison import compare
    from onnxport.compare.data import Dataset, read_data
    from onnxport.compare.report.report import Report
    from onnxport.compare.report.text import table

__all__ = ["Dataset", "Report", "compare", "read_data", "table"]

_LAZY = {
    "Dataset": "onnxport.compare.data",
    "Report": "onnxport.compare.report.report",
    "compare": "onnxport.compare.comparison",
    "read_data": "onnxport.compare.data",
    "table": "onnxport.compare.report.text",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: a worker process enters through this package and should hold no more than its side needs."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
