"""Traced models, each traced once: a trace takes seconds.

They share out what can vary, so that every setting is in some graph: norms before or after, one or two layers, heads that need padding or
not, tied or separate tables, biases, activations, kinds of positions, opsets.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from onnxport.export import CausalLM, Encoder, Module, Seq2Seq, export
from onnxport.export.exported import Exported
from support import tiny_torch as tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-norm, one layer each, tied, sinusoidal, heads of 10."""
    return tiny.write_folder(tmp_path_factory.mktemp("source") / "tiny-en-de", tokenizer=40, num_decoder_layers=1)


@pytest.fixture(scope="session")
def from_folder(folder: Path) -> Exported:
    return export(folder)


def separate_adapter() -> Seq2Seq:
    """Post-norm, two decoder layers, GELU, no biases, sequence first, everything apart, no final norms, learned positions."""
    torch.manual_seed(3)
    transformer = nn.Transformer(16, 2, 1, 2, 24, activation="gelu", bias=False)
    transformer.encoder.norm = transformer.decoder.norm = None
    return Seq2Seq(
        transformer=tiny.randomized(transformer),
        source_embedding=nn.Embedding(30, 16),
        target_embedding=nn.Embedding(25, 16),
        head=nn.Linear(16, 25),
        positions=nn.Embedding(12, 16),
        source_tokenizer=tiny.words(30),
        target_tokenizer=tiny.words(25),
        pad_id=0,
        bos_id=1,
        eos_id=2,
        decoder_start_id=3,
    )


@pytest.fixture(scope="session")
def separate() -> Exported:
    return export(separate_adapter())


@pytest.fixture(scope="session")
def causal() -> Exported:
    """Pre-norm, two layers, written in the latest opset."""
    torch.manual_seed(4)
    embedding = nn.Embedding(30, 16)
    model = CausalLM(transformer=tiny.encoder_stack(norm_first=True), embedding=embedding, pad_id=0, bos_id=1, eos_id=2, max_length=20)
    return export(model, opset=25)


@pytest.fixture(scope="session")
def classifier() -> Exported:
    """Post-norm, two layers, sequence first, opset 24."""
    torch.manual_seed(5)
    stack = tiny.encoder_stack(batch_first=False, norm=False)
    return export(Encoder(transformer=stack, embedding=nn.Embedding(30, 16), head=nn.Linear(16, 3), pooling="mean"), opset=24)


@pytest.fixture(scope="session")
def plain() -> Exported:
    """The first thing that everyone tries, in small: PyTorch's documentation example with a batch of 1."""
    torch.manual_seed(6)
    inputs = {"src": torch.rand(10, 1, 64), "tgt": torch.rand(7, 1, 64)}
    dynamic = {"src": {0: "source", 1: "batch"}, "tgt": {0: "target", 1: "batch"}}
    module = nn.Transformer(d_model=64, nhead=8, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=64)
    return export(Module(module, inputs=inputs, dynamic=dynamic, outputs=["output"]))
