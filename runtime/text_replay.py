"""How near a variant is to the original on golden texts: in what it thinks comes next, in vectors, in labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.interface import ATTENTION_MASK
from onnxport.runtime.bundle.kept import Kept, log_softmax
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.tasks.classification import SCORES
from onnxport.runtime.tasks.embedding import STATE, vectors

Arrays = Mapping[str, np.ndarray]
Replayed = tuple[Arrays, Arrays]  # a golden case, and a variant's outputs on its inputs
POSITIONS = 2048  # of the caches of a batch
UNLIKE = 4  # how many times as long as the shortest row of a batch its longest is
DECIDED = 0.1  # how much more probable a label is than any other where the original counts as decided


def distributions(engine: Engine, case: Arrays) -> dict[str, float | None]:
    """The case golden.TEXT, read step by step, many rows together; no more than one step's logits are ever held.

    Returns kl, the mean divergence in nats a token of the variant's distributions from the original's (see `kept.Kept`); top1_agreement,
    the share of tokens with the same most probable one; perplexity, of the variant; perplexity_change, by how much that is more than the
    original's, as a share of it. All are None where values are not finite.
    KeyError, ValueError, IndexError, TypeError: arrays of the case are missing or do not fit together.
    """
    kept = Kept.read(case)
    rows = list(_rows(case, engine.encoder is not None))
    if not len(kept) or sum(len(row.scored) for row in rows) != len(kept):
        raise ValueError(f"{len(kept)} kept distributions for {sum(len(row.scored) for row in rows)} tokens")
    divergence, same, own = np.zeros(len(kept)), np.zeros(len(kept), bool), np.zeros(len(kept))
    for batch in _batches(rows):
        for places, following, logits in _steps(engine, batch):
            logprobs = log_softmax(logits)
            here = kept.at(places)
            divergence[places] = here.divergence(logprobs)
            same[places] = logprobs.argmax(1) == here.top_ids[:, 0]
            own[places] = logprobs[np.arange(len(places)), following]
    if not (np.isfinite(divergence).all() and np.isfinite(own).all()):
        return dict.fromkeys(("kl", "top1_agreement", "perplexity", "perplexity_change"))
    change = np.exp(float(kept.logprobs.mean(dtype=np.float64)) - own.mean()) - 1
    return {
        "kl": max(0.0, float(divergence.mean())),  # below 0 by rounding alone
        "top1_agreement": float(same.mean()),
        "perplexity": float(np.exp(-own.mean())),
        "perplexity_change": float(change),
    }


class _Row:
    """A row of the case. start: where its distributions begin among all."""

    def __init__(self, source: list[int], prefix: np.ndarray, scored: np.ndarray, start: int) -> None:
        self.source, self.prefix, self.scored, self.start = source, prefix, scored, start

    def __len__(self) -> int:
        return len(self.prefix) + len(self.scored)


def _rows(case: Arrays, sourced: bool) -> Iterator[_Row]:
    ids, lengths = golden.targets(case)
    sources = golden.sources(case) if sourced else [[] for _ in ids]
    start = 0
    for source, row, length, first, count in zip(sources, ids, lengths, case["first"], case["scored"], strict=True):
        if not 0 < first < first + count <= length <= len(row):
            raise ValueError(f"a text of {length} tokens of which {count} are scored from {first} on")
        yield _Row(source, row[:first], row[first : first + count], start)
        start += int(count)


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows of like length, for what stands before is read padded; in each batch those with most to score first."""
    left = sorted(rows, key=len, reverse=True)
    while left:
        longest = len(left[0])
        alike = [row for row in left if len(row) * UNLIKE >= longest][: max(1, POSITIONS // longest)]
        yield sorted(alike, key=lambda row: -len(row.scored))
        left = left[len(alike) :]


def _steps(engine: Engine, rows: Sequence[_Row]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step the places among all distributions, the tokens that follow, and the logits [rows, vocabulary] before them."""
    cross = engine.encode([row.source for row in rows]) if engine.encoder is not None else None
    state = DecoderState(engine, cross, [row.prefix.tolist() for row in rows], len(rows[0].scored))
    for step in range(len(rows[0].scored)):
        active = [row for row in rows if len(row.scored) > step]
        state.active[len(active) :] = False
        if step:
            state.ids[: len(active), 0] = [row.scored[step - 1] for row in active]
        state.advance()
        places, following = np.array([row.start + step for row in active]), np.array([row.scored[step] for row in active])
        yield places, following, state.logits.numpy()[: len(active)]


def answers(encoder: Encoder, cases: Sequence[Replayed]) -> dict[str, float]:
    """Of an encoder of texts: cosine and cosine_least, the mean and the least over texts of the cosine of what original and variant make of
    each; label_agreement, the share of texts (of tokens, where each has a label) with the same label, of those where the original is
    decided between labels.

    What a text is made into is its vector, or the logits of its labels. Metrics that say nothing are left out: one number has no direction,
    and a model without labels, or never decided between them, no agreement.
    """
    cosines: list[float] = []
    agreed: list[np.ndarray] = []
    for case, found in cases:
        for text in range(len(case["in/input_ids"])):
            expected = golden.outputs(case)
            pair = [_answer(encoder, outputs, case, text) for outputs in (expected, {name: found[name] for name in expected})]
            one, other = (np.concatenate([array.ravel() for array in side.values()]) for side in pair)
            if one.size > 1:
                cosines.append(_cosine(one, other))
            if encoder.task != "embedding":
                agreed += [_agreed(encoder, a, b) for a, b in zip(pair[0].values(), pair[1].values(), strict=True)]
    result = {"cosine": float(np.mean(cosines)), "cosine_least": min(cosines)} if cosines else {}
    decided = np.concatenate(agreed) if agreed else np.zeros(0, bool)
    return result | ({"label_agreement": float(decided.mean())} if decided.size else {})


def _answer(encoder: Encoder, outputs: Arrays, case: Arrays, text: int) -> dict[str, np.ndarray]:
    """What one text is made into, float64, without its padding."""
    mask = case[f"in/{ATTENTION_MASK}"][text] > 0
    rows = {name: (array[text][mask] if name in encoder.by_token else array[text]).astype(np.float64) for name, array in outputs.items()}
    return {STATE: vectors(encoder, [rows[STATE]])[0]} if encoder.task == "embedding" and set(rows) == {STATE} else rows


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else float(np.array_equal(one, other))


def _agreed(encoder: Encoder, golden_logits: np.ndarray, found: np.ndarray) -> np.ndarray:
    """bool, one for each label that the original is decided on: whether the variant has the same."""
    problem = encoder.config.problem if encoder.task == "classification" else "single"
    if golden_logits.shape[-1] < 2 or problem == "regression":
        return np.zeros(0, bool)
    if problem == "multi":
        share, other = SCORES[problem](golden_logits), SCORES[problem](found)
        same, decided = (share >= 0.5) == (other >= 0.5), np.abs(2 * share - 1) >= DECIDED
    else:
        wide, other = np.atleast_2d(golden_logits), np.atleast_2d(found)
        best = np.sort(np.exp(log_softmax(wide)), axis=-1)
        same, decided = wide.argmax(-1) == other.argmax(-1), best[:, -1] - best[:, -2] >= DECIDED
    return np.asarray(same[decided])
