"""Answers that differ from the reference's: examples with the differing words marked, and how sure both sides were where they diverge.

A divergence is the first new token at which two answers differ. Both sides are started again and asked how probable both tokens are.
"""

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

_EXAMPLES = 12  # a variant
_LONGEST = 600  # characters of a text that a report shows
_ORDER = ("earliest", "closest", "widest")  # the divergences to show
_DIVERGENCES = 6  # a variant: two of each of _ORDER
_EARLY, _SPREAD = 8, 16  # differing answers whose probabilities are asked for: the earliest, and some of all others
_TOP = 3  # most probable tokens of a side


def differing(work: Workload, outputs: Sequence[Any], reference: Sequence[Any]) -> list[dict[str, Any]]:
    """Up to a dozen inputs, spread over the data, whose answers differ.

    Each: index, input, expected (reference answers of the data, or None), reference and variant (texts, or ids where there are no texts),
    and first_difference (position among new tokens, or None).
    """
    if work.method in ("encode", "run"):
        return []
    rows = [i for i, (a, b) in enumerate(zip(outputs, reference, strict=True)) if identity(a) != identity(b)]
    rows = [rows[i * len(rows) // _EXAMPLES] for i in range(_EXAMPLES)] if len(rows) > _EXAMPLES else rows
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
    for change, start, end, _, _ in difflib.SequenceMatcher(None, own, others, autojunk=False).get_opcodes():
        if end > start:
            pieces.append(("".join(own[start:end]), change != "equal"))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def shown(value: Any) -> str:
    """An input, a reference or an answer as a text of at most _LONGEST characters."""
    if isinstance(value, dict):
        value = "\n".join(f"{name}: {part}" for name, part in value.items())
    elif isinstance(value, list):
        value = " ".join(map(str, value)) if value and isinstance(value[0], int) else " | ".join(map(str, value))
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def divergences(
    specs: Mapping[str, dict[str, Any]],
    work: Workload,
    outputs: Mapping[str, Sequence[Any]],
    reference: str,
    bundle: Bundle,
    paths: Iterable[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Variant -> up to six informative divergences from the reference: the earliest, the closest and the widest decisions.

    specs, paths: as `measurement.started`; sides are started again, for only some are asked.  bundle: whose tokenizer and end token count.
    Each divergence: index (of the input), input, why (earliest, closest, widest), position (of the first other token, among new ones),
    prefix (what both have before it), and for "reference" and "variant": {"token": {"id", "text"} (its choice; text is None without a
    tokenizer and for the end), "rest" (its answer from there on), "own" and "other" (the probabilities it gives to its own token and to the
    other side's), "top": [{"id", "text", "probability"}], "reason" (why it gives none, else None)}.
    """
    variants = [name for name in specs if name != reference]
    divergent: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    ends = bundle.generation.eos_ids if bundle.generation is not None else ()
    rows = {name: candidates(outputs[name], outputs[reference], bool(ends)) for name in variants} if work.generates else {}
    differing_variants = [name for name in variants if rows.get(name)]
    if not differing_variants:
        return divergent
    texts = _TokenTexts(bundle)
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Client(name, specs[name], paths=paths)) for name in [reference, *differing_variants]}
        for client in sides.values():
            client.load()
        for name in differing_variants:
            pairs = [_pair(outputs[reference][row]["tokens"], outputs[name][row]["tokens"], ends) for row in rows[name]]
            requests = [[work.inputs[row], target] for row, pair in zip(rows[name], pairs, strict=True) for target in pair]
            scores = [_scores(sides[side], requests) for side in (reference, name)]
            divergent[name] = informative(
                [
                    _divergence(row, work, [outputs[reference][row], outputs[name][row]], pair, [_of_pair(s, i) for s in scores], texts)
                    for i, (row, pair) in enumerate(zip(rows[name], pairs, strict=True))
                ]
            )
    return divergent


def informative(divergent: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the divergences, each with `why`: the earliest, then the closest decisions, then the widest."""
    left = list(divergent)
    keys = {"earliest": lambda one: one["position"], "closest": _gap, "widest": lambda one: -_gap(one)}
    kept = []
    for why in _ORDER:
        for one in sorted(left, key=keys[why])[: _DIVERGENCES // len(_ORDER)]:
            left.remove(one)
            kept.append(one | {"why": why})
    return kept


def _gap(divergence: Mapping[str, Any]) -> float:
    """How clear the decision was: the logarithm of the two probabilities' ratio, by the reference or, where it gives none, the variant."""
    for side in (divergence["reference"], divergence["variant"]):
        if side["own"] is not None:
            return abs(math.log(max(side["own"], 1e-30) / max(side["other"], 1e-30)))
    return 0.0


def candidates(outputs: Sequence[Any], reference: Sequence[Any], ends: bool) -> list[int]:
    """Inputs whose answers differ: the earliest divergences and some, evenly, of the others. ends: whether an answer's end is a token."""
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


def _scores(client: Client, pairs: Sequence[Any]) -> list[Any] | str:
    """Scores of inputs with targets, or why the side gives none."""
    try:
        scores: list[Any] = client.call("score", list(pairs), top=_TOP)[0]
        return scores
    except OnnxportError as error:
        return str(error)


def _of_pair(scores: list[Any] | str, number: int) -> list[Any] | str:
    """The scores of the two targets of one divergence."""
    return scores if isinstance(scores, str) else scores[2 * number : 2 * number + 2]


def _divergence(
    row: int, work: Workload, outputs: Sequence[Any], pair: Sequence[Sequence[int]], scores: Sequence[list[Any] | str], texts: "_TokenTexts"
) -> dict[str, Any]:
    """See `divergences`. outputs, pair, scores: of the reference and of the variant."""
    before = list(pair[0][:-1])
    divergence = {"index": row, "input": shown(work.inputs[row]), "position": len(before), "prefix": texts.text(before)}
    for number, (side, output, scored) in enumerate(zip(("reference", "variant"), outputs, scores, strict=True)):
        view: dict[str, Any] = {"token": texts.token(before, pair[number][-1]), "rest": texts.rest(before, output)}
        if isinstance(scored, str):
            view |= {"own": None, "other": None, "top": [], "reason": scored}
        else:
            own, other = scored[number], scored[1 - number]
            best = zip(own["top_ids"][-1], own["top_logprobs"][-1], strict=True)
            view |= {
                "own": _probability(own["token_logprobs"][-1]),
                "other": _probability(other["token_logprobs"][-1]),
                "top": [texts.token(before, int(token)) | {"probability": _probability(logprob)} for token, logprob in best],
                "reason": None,
            }
        divergence[side] = view
    return divergence


def _probability(logprob: Any) -> float:
    return math.exp(min(0.0, float(logprob)))


class _TokenTexts:
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
