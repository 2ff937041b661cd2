"""The inputs of a bundle's golden answers, for bundles that take no texts."""

from collections.abc import Sequence
from typing import Any

from onnxport.errors import BundleError
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle import Bundle


def golden_inputs(bundle: Bundle, method: str) -> list[Any]:
    """Rows of ids for `generate`, else a dict of arrays a case. BundleError where there are none."""
    if bundle.golden is None:
        raise BundleError(f"{bundle.path}: holds neither a tokenizer nor golden inputs to run; give data, or export the model again")
    cases: dict[str, dict[str, Any]] = {}
    arrays = read_npz(bundle.file(bundle.golden), BundleError, "export the model again")
    try:
        rows = [row for name, ids in sorted(arrays.items()) for row in _rows(name, ids, arrays)] if method == "generate" else []
    except (ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds inputs that do not fit ({error}); export the model again") from None
    for name, array in arrays.items():
        case, _, rest = name.partition("/in/")
        if rest:
            cases.setdefault(case, {})[rest] = array
    inputs: list[Any] = rows if method == "generate" else list(cases.values())
    if not inputs:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds no inputs for {bundle.task}; export the model again")
    return inputs


def _rows(name: str, ids: Any, arrays: dict[str, Any]) -> list[list[int]]:
    """The unpadded rows of a golden case's source_ids or input_ids; [] for other arrays."""
    case, _, field_name = name.rpartition("/")
    if field_name not in ("source_ids", "input_ids"):
        return []
    lengths: Sequence[int] = [ids.shape[1]] * len(ids)
    if f"{case}/source_mask" in arrays:
        lengths = arrays[f"{case}/source_mask"].sum(axis=1)
    elif f"{case}/lengths" in arrays and field_name == "input_ids":
        lengths = arrays[f"{case}/lengths"]
    return [[int(i) for i in row[: int(length)]] for row, length in zip(ids, lengths, strict=True)]
