"""Fill-mask: the most probable tokens where a text has its model's mask, as in transformers' fill-mask pipeline.

A softmax over the whole vocabulary at each mask; several masks are filled one by one, each as if the others stayed masks. Of a text that
is longer than the model, each mask is read in the window in which it has most text on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from onnxport.errors import TextError, UsageError
from onnxport.runtime.arrays import softmax
from onnxport.runtime.encoder import Encoder, Window, expect, finite
from onnxport.runtime.shown import Shown
from onnxport.runtime.tokenizer import TextTokenizer, check_text

LOGITS = "logits"


@dataclass(frozen=True, repr=False)
class Fill(Shown):
    """A token for a mask. token: its text; id: its number. score: its probability, 0 to 1. mask: which of the text's masks, from 0.

    text: the whole text with it, as the tokenizer writes it.
    """

    token: str
    id: int
    score: float
    text: str
    mask: int = 0


def fill(
    encoder: Encoder, texts: Sequence[str], top_k: int, targets: Sequence[str] | None, batch_size: int, stride: int | None
) -> list[list[Fill]]:
    """For each text the `top_k` best tokens of its first mask, best first, then those of its second, and so on.

    targets: tokens to choose among; scores stay shares of the whole vocabulary. UsageError, TextError, DataError (the model answers NaN).
    """
    expect(encoder, "fill-mask", (LOGITS,))
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise UsageError(f"top_k is {top_k!r}, expected a whole number from 1")
    tokenizer, mask = _tokenizer(encoder)
    wholes = _read(encoder, tokenizer, mask, texts)
    windows = encoder.windows(texts, stride)
    chosen = _chosen(windows, wholes, mask)
    allowed = None if targets is None else _ids(tokenizer, targets)
    found: dict[tuple[int, int], list[Fill]] = {}
    for window, outputs in encoder.each([window for window in windows if chosen.get(id(window))], batch_size):
        whole = wholes[window.owner]
        for place, token in chosen[id(window)]:
            shares = softmax(finite(outputs[LOGITS][token], window.owner))
            found[window.owner, place] = _best(tokenizer, whole, mask, place, shares, top_k, allowed)
    return [[one for place in range(whole.ids.count(mask)) for one in found[i, place]] for i, whole in enumerate(wholes)]


def _tokenizer(encoder: Encoder) -> tuple[TextTokenizer, int]:
    """The tokenizer, and the id of its mask."""
    if encoder.tokenizer is None:
        raise TextError("the bundle has no tokenizer, so it cannot read text; use run with token ids")
    if encoder.config.mask_id is None:
        raise UsageError("this bundle does not say which token is its mask; export the model again, with its own tokenizer files")
    return encoder.tokenizer, encoder.config.mask_id


def _read(encoder: Encoder, tokenizer: TextTokenizer, mask: int, texts: Sequence[str]) -> list[Encoding]:
    """The texts whole. TextError for one without a mask."""
    for text in texts:
        check_text(text)
    wholes = tokenizer.read([(text.lower() if encoder.config.lower else text, None) for text in texts])
    for i, whole in enumerate(wholes):
        if mask not in whole.ids:
            where = f"text {i}: " if len(texts) > 1 else ""
            raise TextError(f"{where}{texts[i]!r:.60} has no {tokenizer.token(mask)}, expected one where a word is missing")
    return wholes


def _chosen(windows: Sequence[Window], wholes: Sequence[Encoding], mask: int) -> dict[int, list[tuple[int, int]]]:
    """By id of a window, the masks that it answers: which of the text's, and its token in the window."""
    best: dict[tuple[int, int], tuple[int, Window, int]] = {}
    for window in windows:
        starts = [offsets[0] for i, offsets in zip(wholes[window.owner].ids, wholes[window.owner].offsets, strict=True) if i == mask]
        for token, i in enumerate(window.encoding.ids):
            if i != mask:
                continue
            key = window.owner, starts.index(window.offsets[token][0])
            depth = min(token, len(window) - 1 - token)
            if key not in best or depth > best[key][0]:
                best[key] = depth, window, token
    chosen: dict[int, list[tuple[int, int]]] = {}
    for (_, place), (_, window, token) in best.items():
        chosen.setdefault(id(window), []).append((place, token))
    return chosen


def _best(
    tokenizer: TextTokenizer, whole: Encoding, mask: int, place: int, shares: np.ndarray, top_k: int, allowed: list[int] | None
) -> list[Fill]:
    """The best tokens of one mask, of `allowed` alone if that is given."""
    ids = np.arange(len(shares)) if allowed is None else np.array(allowed)
    count = min(top_k, len(ids))
    few = ids[np.argpartition(-shares[ids], count - 1)[:count]]
    row, where = tokenizer.known(list(whole.ids)), [token for token, i in enumerate(whole.ids) if i == mask]
    fills = []
    for i in map(int, few[np.argsort(-shares[few], kind="stable")]):
        row[where[place]] = i
        text = tokenizer.decode(row, special=len(where) > 1)
        fills.append(Fill(tokenizer.decode([i], special=True), i, float(shares[i]), text, place))
    return fills


def _ids(tokenizer: TextTokenizer, targets: Sequence[str]) -> list[int]:
    """The ids of tokens by name, or of the first token of other texts. UsageError for a text without any."""
    ids = []
    for target in targets:
        found = tokenizer.id_of(target)
        rest = tokenizer.encode([target], special=False)[0] if found is None else [found]
        if not rest:
            raise UsageError(f"targets holds {target!r}, which has no token; leave it out")
        ids.append(rest[0])
    if not ids:
        raise UsageError("targets is empty, expected at least one token")
    return sorted(set(ids))
