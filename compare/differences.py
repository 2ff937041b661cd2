"""Examples of answers that differ from the reference's, with the differing words marked."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from onnxport.compare.metrics import first_difference, identity
from onnxport.compare.protocol.client import Client
from onnxport.compare.workload import Workload
from onnxport.errors import OnnxportError
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.tokenizer import TextTokenizer

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


SHOWN = 6  # a variant: two of each kind
TOP = 3
_EARLY, _SPREAD = 8, 16  # differing answers whose probabilities are asked for: the earliest, and some of all others
_ORDER = ("earliest", "closest", "widest")


def divergences(
    specs: Mapping[str, dict[str, Any]],
    work: Workload,
    outputs: Mapping[str, Sequence[Any]],
    reference: str,
    bundle: Bundle,
    paths: Iterable[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Variant -> up to six informative partings from the reference: the earliest, the closest and the widest decisions.

    specs, paths: as `measure.started`; sides are started again, for only some are asked.  bundle: whose tokenizer and end token count.
    Each parting: index (of the input), input, why (earliest, closest, widest), position (of the first other token, among new ones), prefix
    (what both have before it), and for "reference" and "variant": {"token": {"id", "text"} (what it chose; text is None without a tokenizer
    and for the end), "rest" (its answer from there on), "own" and "other" (the probabilities it gives to its own token and to the other
    side's), "top": [{"id", "text", "probability"}], "reason" (why it gives none, else None)}.
    """
    ends = bundle.generation.eos_ids if bundle.generation is not None else ()
    rows = (
        {name: candidates(outputs[name], outputs[reference], bool(ends)) for name in specs if name != reference} if work.generates else {}
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in specs if name != reference}
    if not any(rows.values()):
        return found
    words = _Words(bundle)
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Client(name, specs[name], paths=paths)) for name in [reference, *(n for n in rows if rows[n])]}
        for client in sides.values():
            client.load()
        for name, places in rows.items():
            if places:
                pairs = [_pair(outputs[reference][row]["tokens"], outputs[name][row]["tokens"], ends) for row in places]
                asked = [[work.inputs[row], side] for row, pair in zip(places, pairs, strict=True) for side in pair]
                scored = [_asked(sides[side], asked) for side in (reference, name)]
                partings = [
                    _parting(row, work, [outputs[reference][row], outputs[name][row]], pair, [_of(s, i) for s in scored], words)
                    for i, (row, pair) in enumerate(zip(places, pairs, strict=True))
                ]
                found[name] = informative(partings)
    return found


def informative(partings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the partings with `why`: the earliest, the closest decisions and the widest, in turn."""
    left = list(partings)
    keys = {"earliest": lambda p: p["position"], "closest": _gap, "widest": lambda p: -_gap(p)}
    kept = []
    for why in _ORDER:
        for parting in sorted(left, key=keys[why])[: SHOWN // len(_ORDER)]:
            left.remove(parting)
            kept.append(parting | {"why": why})
    return kept


def _gap(parting: Mapping[str, Any]) -> float:
    """How clear the decision was: the logarithm of the ratio of the two probabilities on the side that tells it, the reference first."""
    for side in (parting["reference"], parting["variant"]):
        if side["own"] is not None:
            return abs(math.log(max(side["own"], 1e-30) / max(side["other"], 1e-30)))
    return 0.0


def candidates(outputs: Sequence[Any], reference: Sequence[Any], ends: bool) -> list[int]:
    """Inputs whose answers differ: the earliest partings and some, evenly, of the others. ends: whether an answer's end is a token."""
    rows = []
    for i, (own, base) in enumerate(zip(outputs, reference, strict=True)):
        if own["tokens"] != base["tokens"] and identity(own) != identity(base):
            place = first_difference(own["tokens"], base["tokens"])
            if ends or place < min(len(own["tokens"]), len(base["tokens"])):
                rows.append((place, i))
    rows.sort()
    early, others = rows[:_EARLY], rows[_EARLY:]
    count = min(_SPREAD, len(others))
    return [i for _, i in [*early, *(others[k * len(others) // count] for k in range(count))]]


def _pair(reference: Sequence[int], variant: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """Both answers up to and with the first token that differs, the end counted as one."""
    place = first_difference(variant, reference)
    return [[*tokens[:place], tokens[place] if place < len(tokens) else ends[0]] for tokens in (reference, variant)]


def _asked(client: Client, pairs: Sequence[Any]) -> list[Any] | str:
    """Scores of inputs and targets, or why the side gives none."""
    try:
        found: list[Any] = client.call("score", list(pairs), top=TOP)[0]
        return found
    except OnnxportError as error:
        return str(error)


def _of(scored: list[Any] | str, number: int) -> list[Any] | str:
    """The scores of the two targets of a parting."""
    return scored if isinstance(scored, str) else scored[2 * number : 2 * number + 2]


def _parting(
    row: int, work: Workload, outputs: Sequence[Any], pair: Sequence[Sequence[int]], scored: Sequence[list[Any] | str], words: "_Words"
) -> dict[str, Any]:
    """outputs, pair, scored: of the reference and of the variant."""
    before = list(pair[0][:-1])
    parting = {"index": row, "input": shown(work.inputs[row]), "position": len(before), "prefix": words.text(before)}
    for number, (side, output, given) in enumerate(zip(("reference", "variant"), outputs, scored, strict=True)):
        own = pair[number][-1]
        told: dict[str, Any] = {
            "token": words.token(before, own),
            "rest": words.rest(before, output),
            "own": None,
            "other": None,
            "top": [],
        }
        told["reason"] = given if isinstance(given, str) else None
        if not isinstance(given, str):
            own_score, other_score = given[number], given[1 - number]
            told |= {"own": _probability(own_score["token_logprobs"][-1]), "other": _probability(other_score["token_logprobs"][-1])}
            best = zip(own_score["top_ids"][-1], own_score["top_logprobs"][-1], strict=True)
            told["top"] = [words.token(before, int(token)) | {"probability": _probability(logprob)} for token, logprob in best]
        parting[side] = told
    return parting


def _probability(logprob: Any) -> float:
    return math.exp(min(0.0, float(logprob)))


class _Words:
    """Texts of tokens as they stand behind others."""

    def __init__(self, bundle: Bundle) -> None:
        file = bundle.tokenizers.get("target") or bundle.tokenizers.get("source")
        self._tokenizer = TextTokenizer(bundle.file(file)) if file else None
        self._ends = bundle.generation.eos_ids if bundle.generation is not None else ()

    def text(self, tokens: Sequence[int]) -> str:
        """As users see it; ids without a tokenizer."""
        return " ".join(map(str, tokens)) if self._tokenizer is None else self._tokenizer.decode(tokens)

    def token(self, before: Sequence[int], token: int) -> dict[str, Any]:
        """id, text (what it adds to the text before it, a space in front where it begins a word) and end."""
        end = token in self._ends
        return {"id": token, "text": None if end or self._tokenizer is None else self._added(before, [*before, token]), "end": end}

    def rest(self, before: Sequence[int], output: Mapping[str, Any]) -> str:
        """What an answer adds to its beginning."""
        tokens = output["tokens"]
        return self.text(tokens[len(before) :]) if self._tokenizer is None else self._added(before, tokens)

    def _added(self, before: Sequence[int], after: Sequence[int]) -> str:
        old, new = self.text(before), self.text(after)
        return new[next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))) :]
