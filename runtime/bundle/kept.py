"""What golden.npz keeps of the original's distributions over a vocabulary, and how far those of a variant are from them.

Of each position the most probable ids are kept, and all others as one more class. The divergence over these classes is a lower bound of
that over the whole vocabulary, for classes are only joined (the log-sum inequality; Cover and Thomas, Elements of Information Theory, 2.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

KEPT = 128  # ids of a position: see docs/parity.md
_LEAST = 1e-30  # of a share whose logarithm is taken


@dataclass(frozen=True)
class Kept:
    """Distributions at n positions.

    top_ids: int32 [n, k], the most probable ids, best first. top_logprobs: float32 [n, k]. rest: float32 [n], the probability of all other
    ids together. logprobs: float32 [n], of the token that really follows.
    """

    top_ids: np.ndarray
    top_logprobs: np.ndarray
    rest: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, following: np.ndarray, count: int = KEPT) -> Kept:
        """From logits [n, vocabulary] and the ids int64 [n] that follow."""
        logprobs = log_softmax(logits)
        count = min(count, logits.shape[1])
        some = np.argpartition(-logprobs, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(logprobs, some, 1), axis=1, kind="stable")
        ids = np.take_along_axis(some, order, 1)
        best = np.take_along_axis(logprobs, ids, 1)
        rest = np.zeros(len(ids)) if count == logits.shape[1] else np.maximum(1 - np.exp(best).sum(1), 0)
        own = logprobs[np.arange(len(ids)), following]
        return cls(ids.astype(np.int32), best.astype(np.float32), rest.astype(np.float32), own.astype(np.float32))

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """All parts' positions, in order."""
        return cls(*(np.concatenate([getattr(part, name.name) for part in parts]) for name in fields(cls)))

    @classmethod
    def read(cls, case: Mapping[str, np.ndarray]) -> Kept:
        """Of a case of golden.npz. KeyError: it lacks one; ValueError: they do not fit together."""
        found = cls(*(case[name.name] for name in fields(cls)))
        count = len(found.top_ids)
        if found.top_ids.shape != found.top_logprobs.shape or {len(found.rest), len(found.logprobs)} != {count}:
            raise ValueError(f"{count} kept distributions with {len(found.rest)} rests and {len(found.logprobs)} tokens")
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as `read` takes them."""
        return {name.name: getattr(self, name.name) for name in fields(self)}

    def __len__(self) -> int:
        return len(self.top_ids)

    def at(self, places: np.ndarray) -> Kept:
        """Those at some positions."""
        return Kept(*(getattr(self, name.name)[places] for name in fields(self)))

    def divergence(self, logprobs: np.ndarray) -> np.ndarray:
        """Kullback-Leibler divergence in nats, float64 [n], of the distributions with these log-probabilities [n, vocabulary].

        IndexError: an id is not in their vocabulary.
        """
        p, q = self.top_logprobs.astype(np.float64), np.take_along_axis(logprobs, self.top_ids.astype(np.int64), 1)
        kept = lost(np.exp(p), p, q).sum(1)
        rest, other = self.rest.astype(np.float64), 1 - np.exp(q).sum(1)
        return np.asarray(kept + rest * (np.log(np.maximum(rest, _LEAST)) - np.log(np.maximum(other, _LEAST))))


def lost(shares: np.ndarray, logs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What each id adds to the Kullback-Leibler divergence of one distribution from another.

    shares: of the first, `logs` their logarithms, `others` those of the second's; what has no share adds nothing, though both logarithms
    are minus infinity.
    """
    difference = np.zeros(shares.shape, shares.dtype)
    np.subtract(logs, others, out=difference, where=shares > 0)
    return np.asarray(shares * difference)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide
