"""The choice of tokens without blocks, as CUDA finds them, is that of the blocks."""

import numpy as np
import onnxruntime
import pytest

from onnxport.graph.search_graphs import best_graph


@pytest.mark.parametrize(("vocab", "count"), [(97, 1), (97, 97), (640, 5)])
def test_the_best_tokens_are_the_same(vocab: int, count: int) -> None:
    logits = np.random.default_rng(count).standard_normal((3, vocab)).astype(np.float32)
    feeds = {"logits": logits, "candidates": np.array([count]), "suppressed": np.array([3, 5])}
    found = [onnxruntime.InferenceSession(best_graph(vocab, by_blocks=blocks)).run(None, feeds) for blocks in (True, False)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
