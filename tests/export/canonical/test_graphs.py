"""The canonical model equals torch.nn.Transformer in every setting (without a trace), and its traced graphs do too."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxport.errors import ParityError
from onnxport.export import CausalLM, Encoder, Seq2Seq, golden
from onnxport.export.canonical.graphs import check_causal, check_seq2seq, expected_fusions
from onnxport.export.exported import Exported
from onnxport.export.pytorch.describe import build_causal, build_seq2seq, describe, original_encoder, original_seq2seq
from onnxport.export.pytorch.parts import prepare
from onnxport.export.resolve import resolve
from onnxport.export.user_code import evaluating
from support import tiny_torch as tiny
from support.graph_checks import (
    Decoding,
    assert_causal_graph_equals_original,
    assert_seq2seq_graphs_equal_original,
    assert_tensor_graph_equals_original,
)


def assert_canonical_equals_original(adapter: Seq2Seq | CausalLM) -> dict[str, dict[str, int]]:
    """Prefill and cached steps of the canonical model against the user's class; returns the fusions it expects."""
    parts = prepare(adapter)
    with evaluating(*filter(None, (parts.transformer, parts.source_embedding, parts.target_embedding, parts.head))):
        if isinstance(adapter, Seq2Seq):
            built = build_seq2seq(parts)
            check_seq2seq(built, golden.seq2seq_goldens(original_seq2seq(parts), parts.ids, parts.max_length))
        else:
            built = build_causal(parts)
            check_causal(built, golden.causal_goldens(original_encoder(parts), parts.ids, parts.max_length))
    return expected_fusions(built)


def seq2seq(transformer: nn.Transformer, width: int, **changes: Any) -> Seq2Seq:
    torch.manual_seed(1)
    parts: dict[str, Any] = {"source_embedding": nn.Embedding(20, width), "pad_id": 0, "bos_id": 1, "eos_id": 2} | changes
    return Seq2Seq(transformer=tiny.randomized(transformer), **parts)


@pytest.mark.parametrize(
    "settings",
    itertools.product((True, False), ("relu", F.gelu), (True, False), (True, False)),
    ids=lambda s: "-".join(getattr(one, "__name__", str(one)) for one in s),
)
def test_every_combination_of_settings_equals_torch(settings: tuple[Any, ...]) -> None:
    norm_first, activation, bias, batch_first = settings
    number = [(False, True).index(norm_first), bias, batch_first, activation == "relu"]
    for turn in range(2):  # sizes, depths, final norms and positions take turns, so that every pair of settings meets somewhere
        pick = [(sum(number[: i + 1]) + turn) % 2 for i in range(4)]
        heads, width = ((1, 12), (3, 30))[pick[0]]
        layers, norms, positions = ((1, 3), (2, 1))[pick[1]], bool(pick[2]), bool(pick[3])
        transformer = nn.Transformer(
            width, heads, *layers, 20, activation=activation, norm_first=norm_first, bias=bias, batch_first=batch_first, layer_norm_eps=1e-3
        )
        if not norms:
            transformer.encoder.norm = transformer.decoder.norm = None
        changes = {"positions": tiny.table(9, width), "embedding_scale": 1.7} if positions else {}
        assert_canonical_equals_original(seq2seq(transformer, width, **changes))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), torch.relu, F.relu, "gelu"],
    ids=lambda a: getattr(a, "__name__", str(a)),
)
def test_activations_as_functions_modules_and_names(activation: Any) -> None:
    assert_canonical_equals_original(seq2seq(nn.Transformer(16, 2, 1, 1, 20, activation=activation), 16))


@pytest.mark.parametrize("shape", [(9, 16), (9, 1, 16), (1, 9, 16)], ids=str)
@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter, nn.Embedding])
def test_positions_as_tensor_parameter_or_embedding(kind: type, shape: tuple[int, ...]) -> None:
    values = tiny.table(9, 16)
    positions = nn.Embedding.from_pretrained(values) if kind is nn.Embedding else kind(values.reshape(shape))
    assert_canonical_equals_original(seq2seq(nn.Transformer(16, 2, 1, 1, 20), 16, positions=positions))


def test_layers_with_weights_and_sizes_of_their_own() -> None:
    transformer = nn.Transformer(16, 2, 1, 1, 20, batch_first=True)
    transformer.encoder.layers.append(nn.TransformerEncoderLayer(16, 2, 36, activation="gelu", layer_norm_eps=1e-2, batch_first=True))
    transformer.decoder.layers.append(nn.TransformerDecoderLayer(16, 2, 8, activation="gelu", bias=False, batch_first=True))
    assert_canonical_equals_original(seq2seq(transformer, 16))


@pytest.mark.parametrize("tie", [True, False, "target"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_folder_with_every_kind_of_embedding(tmp_path: Path, tie: Any, positions: str) -> None:
    other = 40 if tie is True else 33
    folder = tiny.write_folder(tmp_path, tie_embeddings=tie, positions=positions, target_vocab_size=other)
    assert_canonical_equals_original(resolve(folder).adapter)


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: value.to(kind) for name, value in tiny.weights_of(tiny.CONFIG).items()}
        adapter = resolve(tiny.write_folder(tmp_path, tensors)).adapter
        assert adapter.transformer.encoder.layers[0].linear1.weight.dtype == torch.float32
        assert_canonical_equals_original(adapter)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_causal_in_every_norm_equals_torch(norm_first: bool, tied: bool) -> None:
    embedding = nn.Embedding.from_pretrained(tiny.table(20, 16))
    head = nn.Linear(16, 20)
    if tied:
        head.weight = embedding.weight
    for norm, batch_first in itertools.product((True, False), repeat=2):
        stack = tiny.encoder_stack(norm=norm, norm_first=norm_first, batch_first=batch_first)
        assert_canonical_equals_original(CausalLM(transformer=stack, embedding=embedding, head=head, pad_id=0, bos_id=1, eos_id=2))


@torch.no_grad()
def test_golden_ids_are_below_a_head_smaller_than_the_table() -> None:
    """Otherwise a golden prompt or target could hold ids that no answer can."""
    embedding, head = nn.Embedding.from_pretrained(tiny.table(40, 16)), nn.Linear(16, 6)
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    causal = CausalLM(transformer=tiny.encoder_stack().eval(), embedding=embedding, head=head, **ids)
    assert_canonical_equals_original(causal)
    parts = prepare(causal)
    goldens = golden.causal_goldens(original_encoder(parts), parts.ids, None)
    assert all(goldens[f"seq{i}/input_ids"].max() < 6 and goldens[f"seq{i}/logits"].shape[2] == 6 for i in range(3))
    parts = prepare(seq2seq(nn.Transformer(16, 2, 1, 1, 20).eval(), 16, source_embedding=embedding, head=head))
    goldens = golden.seq2seq_goldens(original_seq2seq(parts), parts.ids, None)
    assert all(goldens[f"seq{i}/target_ids"].max() < 6 for i in range(3)) and goldens["seq1/source_ids"].max() >= 6


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    ids = {"pad_id": np.int64(0), "bos_id": np.int64(1), "eos_id": np.int32(2), "max_length": np.int64(9)}
    for scale in (np.float32(1.5), torch.tensor(1.5), 1.5):
        parts = prepare(seq2seq(nn.Transformer(16, 2, 1, 1, 20), 16, embedding_scale=scale, **ids))
        assert json.dumps([parts.ids, parts.scale, parts.max_length]) == (
            '[{"pad_id": 0, "bos_id": 1, "eos_id": 2, "decoder_start_id": 1}, 1.5, 9]'
        )


def test_expected_fusions_count_norms_behind_residuals() -> None:
    def counts(norm_first: bool, norms: bool, **changes: Any) -> tuple[int, int]:
        transformer = nn.Transformer(16, 2, 2, 3, 20, norm_first=norm_first)
        if not norms:
            transformer.encoder.norm = transformer.decoder.norm = None
        expected = assert_canonical_equals_original(seq2seq(transformer, 16, **changes))
        assert expected["encoder"]["multi_head_attention"] == 2
        assert expected["decoder"]["group_query_attention"] == expected["decoder"]["multi_head_attention"] == 3
        return expected["encoder"]["skip_layer_norm"], expected["decoder"]["skip_layer_norm"]

    assert counts(norm_first=False, norms=True) == (4, 9)
    assert counts(norm_first=False, norms=False) == (4, 9)
    assert counts(norm_first=True, norms=True) == (4, 9)
    assert counts(norm_first=True, norms=False) == (3, 8)
    positions = tiny.table(9, 16)  # in the decoder, the first norm of pre-norm layers follows the sum of tokens and positions
    assert counts(norm_first=True, norms=True, positions=positions) == (4, 10)
    assert counts(norm_first=True, norms=False, positions=positions, embedding_scale=1.7) == (3, 9)
    assert counts(norm_first=False, norms=True, positions=positions) == (4, 9)


def test_disagreement_with_the_original_is_a_parity_error() -> None:
    parts = prepare(seq2seq(nn.Transformer(16, 2, 1, 1, 20), 16))
    with evaluating(parts.transformer):
        goldens = golden.seq2seq_goldens(original_seq2seq(parts), parts.ids, parts.max_length)
        goldens["seq1/logits"][1, 0, 3] += 0.01
        with pytest.raises(ParityError, match="differ from the original's by 1.0"):
            check_seq2seq(build_seq2seq(parts), goldens)


def test_traced_graphs_of_a_folder_equal_torch_at_shapes_not_traced(from_folder: Exported) -> None:
    assert_seq2seq_graphs_equal_original(from_folder)
    assert_seq2seq_graphs_equal_original(from_folder, beams=3)
    assert from_folder.route == "canonical" and from_folder.task == "translation" and from_folder.name == "tiny-en-de"
    assert from_folder.generation.head_size == 16  # a head of 10, padded


def test_traced_graphs_of_an_adapter_equal_torch(separate: Exported) -> None:
    assert_seq2seq_graphs_equal_original(separate)
    assert_seq2seq_graphs_equal_original(separate, beams=2)
    assert replace(separate.generation, layers=2, vocab_size=25, source_vocab_size=30, decoder_start_id=3) == separate.generation
    assert separate.generation.max_length == 12 and separate.task == "text2text"
    assert set(separate.tokenizers) == {"source", "target"} and separate.tokenizers["source"] != separate.tokenizers["target"]


def test_traced_causal_graph_equals_torch_in_chunks(causal: Exported) -> None:
    assert_causal_graph_equals_original(causal)
    decoding, ids = Decoding(causal), causal.goldens["seq0/input_ids"]
    whole = decoding.prefill(ids, {})
    for size in (2, 3, 4):
        ends = [min(start + size, ids.shape[1]) - 1 for start in range(0, ids.shape[1], size)]
        assert abs(decoding.in_chunks(ids, {}, size) - whole[:, ends]).max() < 1e-4
    assert causal.task == "text-generation" and causal.generation.kind == "causal"


def test_traced_classifier_equals_torch(classifier: Exported) -> None:
    assert_tensor_graph_equals_original(classifier)
    assert classifier.goldens["case1/out/logits"].shape == (3, 3)
    assert classifier.generation is None and classifier.expected["encoder"] == {"multi_head_attention": 2, "skip_layer_norm": 4}


def test_text_encoder_is_an_embedding_with_a_tokenizer() -> None:
    def task(**changes: Any) -> str:
        adapter = Encoder(transformer=tiny.encoder_stack(), embedding=nn.Embedding(30, 16), **changes)
        return describe(resolve(adapter))[1].tasks[0]

    assert task(tokenizer=tiny.words(30)) == "embedding"
    assert task() == "tensor"
    assert task(head=nn.Linear(16, 3)) == "tensor"
