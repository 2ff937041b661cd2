"""Examples of answers that differ from the reference's, with the differing words marked."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from onnxport.compare.metrics import first_difference, identity
from onnxport.compare.workload import Workload

_SHOWN = 12
_LONGEST = 600  # characters of a text that a report shows


def differing(work: Workload, outputs: Sequence[Any], reference: Sequence[Any]) -> list[dict[str, Any]]:
    """Up to a dozen inputs, spread over the data, whose answers differ.

    Each: index, input, expected (reference answers of the data, or None), reference and variant (texts, or ids where there are no texts),
    and first_difference (position among new tokens, or None).
    """
    if work.method in ("encode", "run"):
        return []
    rows = [i for i, (a, b) in enumerate(zip(outputs, reference, strict=True)) if identity(a) != identity(b)]
    rows = [rows[i * len(rows) // _SHOWN] for i in range(_SHOWN)] if len(rows) > _SHOWN else rows
    return [
        {
            "index": i,
            "input": shown(work.inputs[i]),
            "expected": None if work.references is None else shown(work.references[i]),
            "reference": shown(identity(reference[i])),
            "variant": shown(identity(outputs[i])),
            "first_difference": first_difference(outputs[i]["tokens"], reference[i]["tokens"]) if work.generates else None,
        }
        for i in rows
    ]


def marked(text: str, other: str) -> list[tuple[str, bool]]:
    """`text` in pieces: (piece, differs from `other`), word by word; joined, the pieces are `text`."""
    own, others = _words(text), _words(other)
    pieces: list[tuple[str, bool]] = []
    for kind, start, end, _, _ in difflib.SequenceMatcher(None, own, others, autojunk=False).get_opcodes():
        if end > start:
            pieces.append(("".join(own[start:end]), kind != "equal"))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def shown(value: Any) -> str:
    """An input, a reference or an answer as a text that is not too long for a report."""
    if isinstance(value, dict):
        value = "\n".join(f"{name}: {part}" for name, part in value.items())
    elif isinstance(value, list):
        value = " ".join(map(str, value)) if value and isinstance(value[0], int) else " | ".join(map(str, value))
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
