"""Names, dtypes and shapes of what the graphs of a bundle read and give, by role: the contract between those that make and run them.

A decoder reads `input_ids` and `position_ids` int64 [rows, length], `logits_index` int64 [rows] (which position's logits it gives) and for
each layer `past_key_i` and `past_value_i` [rows, kv_heads, capacity, head_size]; that of an encoder-decoder also `source_mask` int32
[sources, source] and `cross_key_i`, `cross_value_i` [sources, heads, source, head_size], which its encoder made of `input_ids` int64 and
`source_mask` int32 [sources, source]. It gives `logits` float32 [rows, vocabulary], and `present_key_i` and `present_value_i` as the past.
Keys and values are float32, float16, or int8 with a scale for each head and channel that the graph holds itself.

In a bundle it may have the optional input `logits_rows` int64 [picked], the row of each position in `logits_index` [picked]: then it gives
logits, and its best tokens, of any positions of any rows, [picked, ...] in place of [rows, ...]. Left out, it is each row once. Guesses are
checked by it; decoders of older bundles have no such input.

As traced it also reads `self_mask` bool [rows, 1, length, total], and the present is the past with what is new behind it. Fused, it reads
in place of the mask `seqlens_k` int32 [rows] (the last valid cache entry after the run), `total_sequence_length` int32 [] (the valid
entries of the longest row) and, without an encoder, `query_seqlens` int32 [rows] (the ids of each row that are no padding); past and
present are one buffer then. In a bundle it also reads `candidates` int64 [1] and `suppressed` int64 [ids], and gives its best tokens:
`token` int64 and `logprob` float32 [rows, candidates], and `kept` float32 [rows], see onnxport.graph.search_graphs.

The search graph `process`, which writes the rules of a step into logits, has the optional inputs `biased` int64 [biases, 2] (row and id)
and `bias` float32 [biases], what is added to logits, and `mask` float32 [rows, vocabulary], 0 for the ids that an answer's format lets come
and -inf for the others. Graphs of older bundles have none of them: there a mask is banned ids, and a bias is refused. The search graph
`mask` does what is left of `process` where a mask is the only rule; older bundles have none.

Encoders that answer texts read `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 [texts, tokens].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Feed = dict[str, np.ndarray]

INPUT_IDS, POSITION_IDS, LOGITS_INDEX, LOGITS_ROWS = "input_ids", "position_ids", "logits_index", "logits_rows"
SELF_MASK, SOURCE_MASK, ATTENTION_MASK, TOKEN_TYPE_IDS = "self_mask", "source_mask", "attention_mask", "token_type_ids"
SEQLENS, TOTAL_LENGTH, QUERY_LENGTHS = "seqlens_k", "total_sequence_length", "query_seqlens"
CANDIDATES, SUPPRESSED = "candidates", "suppressed"
BIASED, BIAS, MASK = "biased", "bias", "mask"
LOGITS, BEST = "logits", ("token", "logprob", "kept")
TEXT_INPUTS = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
PAST, PRESENT, CROSS = "past_", "present_", "cross_"  # what the names of caches begin with
_CACHE = re.compile(r"(?:past|present|cross)_(?:key|value)_\d+")


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the keys and values of all layers, in the order of a graph's inputs and outputs. prefix: PAST, PRESENT or CROSS."""
    return [f"{prefix}{part}_{i}" for i in range(layers) for part in ("key", "value")]


def is_cache(name: str | None) -> bool:
    """True for a past, present or cross key or value."""
    return _CACHE.fullmatch(name or "") is not None


def required_inputs(layers: int) -> list[str]:
    """What every decoder of a bundle reads; it may read more of what stands above."""
    return [INPUT_IDS, SEQLENS, TOTAL_LENGTH, CANDIDATES, SUPPRESSED, *cache_names(PAST, layers)]


def source(ids: np.ndarray, mask: np.ndarray | None = None) -> Feed:
    """Inputs of the encoder of an encoder-decoder: ids int64 and mask int32 [sources, source]; without a mask none is padding."""
    import numpy as np

    return {INPUT_IDS: ids, SOURCE_MASK: np.ones(ids.shape, np.int32) if mask is None else mask}


def prefill(ids: np.ndarray, lengths: np.ndarray | None = None, before: np.ndarray | None = None) -> Feed:
    """Inputs of a fused decoder for several ids a row, beside caches and sources.

    ids: int64 [rows, length], padded on the right. lengths: ids of each row that are real, None for all. before: entries that its cache
    holds already, None for an empty one; both int64 [rows].
    """
    import numpy as np

    rows, length = ids.shape
    lengths = np.full(rows, length, np.int64) if lengths is None else lengths
    before = np.zeros(rows, np.int64) if before is None else before
    after = before + lengths
    return {
        INPUT_IDS: ids,
        POSITION_IDS: before[:, None] + np.arange(length, dtype=np.int64),
        LOGITS_INDEX: np.maximum(lengths, 1) - 1,
        SEQLENS: (np.maximum(after, 1) - 1).astype(np.int32),
        TOTAL_LENGTH: np.array(after.max(), np.int32),
        QUERY_LENGTHS: lengths.astype(np.int32),
    }


def step(ids: np.ndarray) -> Feed:
    """Inputs of a fused decoder for one id a row, int64 [rows, 1], beside caches and sources; `at_positions` says where the ids stand."""
    return prefill(ids)


def at_positions(feed: Mapping[str, np.ndarray], positions: np.ndarray) -> None:
    """Write the positions of a step's ids, int64 [rows], into its feed in place: what is bound to these arrays stays valid."""
    feed[POSITION_IDS][:, 0] = positions
    feed[SEQLENS][:] = positions
    feed[TOTAL_LENGTH][...] = positions.max() + 1
