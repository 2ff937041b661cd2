"""golden.npz of a bundle: the answers of the original class that every variant is held against, by case and name.

Of a model that generates, a case holds `source_ids` int64 and `source_mask` int32 [rows, source] (not of a language model), then
`target_ids` int64 [rows, length] with `target_lengths` [rows] (of a language model `input_ids` and `lengths`), and `logits` float32 [rows,
length, vocabulary]. Its case GREEDY holds inputs as `source_ids` and `source_mask`, and the tokens of greedy decoding without the end,
`tokens` [rows, most] with their `lengths` [rows]. Its case TEXT, which only a model has that reads texts and knows their language, holds
real text in the same names, `first` and `scored` int64 [rows], the first place of each row whose distribution is kept and how many are,
and in the place of logits what `kept.Kept` keeps of them, row after row: of each such place given the tokens before it. A case of any other
model holds inputs as `in/NAME` and outputs as `out/NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxport.errors import BundleError
from onnxport.runtime.bundle.reader import Bundle

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]
    Cases = dict[str, dict[str, np.ndarray]]

GREEDY, TEXT = "greedy", "text"
_IN, _OUT = "in/", "out/"
_ADVICE = "export the model again"


def by_case(arrays: Arrays) -> Cases:
    """Case → name → array, from arrays named `case/name`; cases are sorted."""
    cases: Cases = {}
    for key, array in sorted(arrays.items()):
        case, _, name = key.partition("/")
        cases.setdefault(case, {})[name] = array
    return cases


def read(path: Path) -> Cases:
    """The cases of a golden.npz. BundleError when it cannot be read."""
    from onnxport.runtime.arrays import read_npz

    return by_case(read_npz(path, BundleError, _ADVICE))


def read_answers(bundle: Bundle) -> Cases:
    """A bundle's cases. BundleError when they are missing, unreadable, empty, or hold answers that are not finite."""
    import numpy as np

    if bundle.golden is None:
        raise BundleError(f"{bundle.path}: no golden answers, expected golden.npz; {_ADVICE}")
    path = bundle.file(bundle.golden)
    cases = read(path)
    for case, arrays in cases.items():
        for name, array in arrays.items():
            if not name.startswith(_IN) and array.dtype.kind in "fc" and not np.isfinite(array).all():  # an input mask may hold -inf
                raise BundleError(f"{path}: {case}/{name} holds values that are not finite, expected golden answers; {_ADVICE}")
    if not cases:
        raise BundleError(f"{path}: no golden answers in it; {_ADVICE}")
    return cases


def teacher_forced(arrays: Arrays) -> list[dict[str, np.ndarray]]:
    """The cases with whole logits of a model that generates."""
    return [case for case in by_case(arrays).values() if "logits" in case]


def inputs(case: Arrays) -> dict[str, np.ndarray]:
    """The inputs of a case of a model that does not generate, by name."""
    return {name.removeprefix(_IN): array for name, array in case.items() if name.startswith(_IN)}


def outputs(case: Arrays) -> dict[str, np.ndarray]:
    """The outputs of a case of a model that does not generate, by name."""
    return {name.removeprefix(_OUT): array for name, array in case.items() if name.startswith(_OUT)}


def targets(case: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Ids that a decoder reads, int64 [rows, length] padded on the right, and how many of each row are real, int64 [rows].

    KeyError, ValueError: the case holds none, or they do not fit together.
    """
    import numpy as np

    ids = case["target_ids"] if "target_ids" in case else case["input_ids"]
    rows, length = ids.shape
    return ids, np.asarray(case.get("target_lengths", case.get("lengths", np.full(rows, length))), np.int64).reshape(rows)


def sources(case: Arrays) -> list[list[int]]:
    """Ids that an encoder reads, or of the case GREEDY a language model, without padding. KeyError, ValueError, IndexError."""
    from onnxport.runtime.arrays import unpadded

    return unpadded(case["source_ids"], case["source_mask"])


def prompts(case: Arrays) -> list[list[int]]:
    """Inputs that a model which generates can answer, without padding; [] where a case has none. ValueError, TypeError, IndexError."""
    if "source_ids" in case:
        ids = case["source_ids"]
        lengths = case["source_mask"].sum(axis=1) if "source_mask" in case else [ids.shape[1]] * len(ids)
    elif "input_ids" in case:
        ids, lengths = targets(case)
    else:
        return []
    return [[int(i) for i in row[: int(length)]] for row, length in zip(ids, lengths, strict=True)]
