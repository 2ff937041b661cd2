"""Embedding: texts become vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxport.runtime.encoder import Encoder, expect, finite, weighted

STATE = "last_hidden_state"
POOL: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # [tokens, hidden] → [hidden], as in sentence-transformers
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
}


def encode(encoder: Encoder, texts: Sequence[str], batch_size: int, stride: int | None) -> np.ndarray:
    """Vectors float32 [texts, hidden], pooled as the bundle says.

    The vector of a text that is longer than the model is the mean of its windows' vectors, each weighted by its tokens, whatever the
    pooling (with mean pooling: the mean over the tokens of all windows), and brought to length 1 at the end, where the bundle says so.
    """
    expect(encoder, "embedding", (STATE,))
    pool = POOL[encoder.config.pooling]
    windows = encoder.windows(texts, stride)
    if not windows:
        hidden = encoder.outputs[STATE][-1]
        return np.zeros((0, hidden if isinstance(hidden, int) else 0), np.float32)
    parts = (
        (window.owner, len(window), pool(finite(outputs[STATE][: len(window)], window.owner)))
        for window, outputs in encoder.each(windows, batch_size)
    )
    vectors = np.stack(weighted(parts, len(texts)))
    if encoder.config.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float32)
