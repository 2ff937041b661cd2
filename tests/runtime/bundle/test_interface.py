"""Inputs of decoders: positions, lengths, and places of logits agree with what the cache holds."""

import numpy as np

from onnxport.runtime.bundle import interface


def test_a_first_run_reads_padded_rows() -> None:
    feed = interface.prefill(np.array([[5, 6, 7], [8, 1, 1]]), np.array([3, 1]))
    assert feed["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert feed["logits_index"].tolist() == [2, 0] and feed["seqlens_k"].tolist() == [2, 0]
    assert feed["total_sequence_length"] == 3 and feed["query_seqlens"].tolist() == [3, 1]
    assert {name: str(array.dtype) for name, array in feed.items()} == {
        "input_ids": "int64", "position_ids": "int64", "logits_index": "int64",
        "seqlens_k": "int32", "total_sequence_length": "int32", "query_seqlens": "int32",
    }  # fmt: skip


def test_a_later_part_stands_behind_what_the_cache_holds() -> None:
    feed = interface.prefill(np.array([[5, 6], [1, 1]]), np.array([2, 0]), np.array([4, 0]))
    assert feed["position_ids"].tolist() == [[4, 5], [0, 1]]
    assert feed["logits_index"].tolist() == [1, 0] and feed["seqlens_k"].tolist() == [5, 0] and feed["total_sequence_length"] == 6


def test_steps_write_into_the_same_arrays() -> None:
    feed = interface.step(np.zeros((2, 1), np.int64))
    before = dict(feed)
    interface.at_positions(feed, np.array([7, 3]))
    assert all(feed[name] is array for name, array in before.items())
    assert feed["position_ids"].tolist() == [[7], [3]] and feed["seqlens_k"].tolist() == [7, 3] and feed["total_sequence_length"] == 8


def test_caches_by_name() -> None:
    assert interface.cache_names(interface.PAST, 2) == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert all(map(interface.is_cache, interface.cache_names(interface.CROSS, 3)))
    assert not any(map(interface.is_cache, ("past_key_values.0.key", "past_key", "my_past_key_0", None)))
