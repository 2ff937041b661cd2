"""Every model of a user's own that cannot be exported is refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxport.errors import CheckpointError, OnnxportError, UsageError
from onnxport.export import CausalLM, Encoder, Module, Seq2Seq
from support import tiny_torch as tiny
from support.refusals import assert_refused


def adapter(**changes: Any) -> Seq2Seq:
    parts: dict[str, Any] = {"transformer": nn.Transformer(16, 2, 1, 1, 20), "source_embedding": nn.Embedding(20, 16)}
    return Seq2Seq(**(parts | {"pad_id": 0, "bos_id": 1, "eos_id": 2} | changes))


class Subclass(nn.Transformer):
    pass


class OwnLayer(nn.TransformerEncoderLayer):
    pass


def hooked() -> nn.Transformer:
    transformer = nn.Transformer(16, 2, 1, 1, 20)
    transformer.decoder.layers[0].linear1.register_forward_hook(lambda module, inputs, output: output * 2)
    return transformer


def patched() -> nn.Transformer:
    transformer = nn.Transformer(16, 2, 1, 1, 20)
    transformer.encoder.forward = lambda x, **masks: x
    return transformer


def other_order() -> nn.Transformer:
    return nn.Transformer(16, 2, 1, 1, 20, batch_first=True, custom_encoder=tiny.encoder_stack(batch_first=False))


def other_width() -> nn.Transformer:
    return nn.Transformer(16, 2, 1, 1, 20, custom_decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 8), 1))


def other_heads() -> nn.Transformer:
    transformer = nn.Transformer(16, 2, 1, 1, 20)
    transformer.decoder.layers[0].multihead_attn = nn.MultiheadAttention(16, 4)
    return transformer


@pytest.mark.parametrize(
    ("transformer", "part"),
    [
        (lambda: Subclass(16, 2, 1, 1, 20), "transformer is a Subclass, not exactly torch.nn.Transformer"),
        (lambda: nn.Transformer(16, 2, 1, 1, 20, custom_encoder=nn.Identity()), "transformer.encoder is a Identity"),
        (
            lambda: nn.Transformer(16, 2, 1, 1, 20, custom_encoder=nn.TransformerEncoder(OwnLayer(16, 2, 20), 1)),
            "transformer.encoder.layers.0 is a OwnLayer",
        ),
        (other_order, "transformer has parts with batch_first and parts without"),
        (other_width, "transformer has layers of different widths (8, 16)"),
        (other_heads, "transformer.decoder.layers.0 has 2 heads in self attention and 4 in cross attention"),
        (hooked, "transformer.decoder.layers.0.linear1 has forward hooks"),
        (patched, "transformer.encoder has a forward of its own"),
        (lambda: nn.Transformer(16, 2, 1, 1, 20, activation=torch.tanh), "activation tanh; known are relu, gelu"),
        (lambda: nn.Transformer(16, 2, 1, 1, 20, activation=lambda x: x.relu()), "activation <lambda>; known are relu, gelu"),
        (lambda: nn.LSTM(16, 16), "transformer is a LSTM"),
    ],
)
def test_transformer_without_canonical_form(transformer: Any, part: str) -> None:
    assert_refused(adapter(transformer=transformer()), part, "use Module(...)")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"transformer": "large"}, "transformer is a str, not exactly torch.nn.Transformer"),
        ({"source_embedding": None}, "needs source_embedding"),
        ({"source_embedding": None, "tokenizer": tiny.words(20)}, "needs source_embedding"),
        ({"source_embedding": nn.Linear(16, 20), "tokenizer": tiny.words(20)}, "source_embedding is a Linear, not exactly"),
        ({"source_embedding": nn.Embedding(20, 8)}, "source_embedding is 8 wide and the transformer 16"),
        ({"source_embedding": nn.Embedding(20, 16, max_norm=1.0)}, "max_norm"),
        ({"head": nn.Linear(8, 20)}, "head takes 8 and the transformer gives 16"),
        ({"head": nn.Linear(16, 21)}, "head gives 21 logits and the embedding that takes the answers has 20 rows"),
        ({"head": nn.Linear(16, 18), "eos_id": 18}, "eos_id is 18, not an id from 0 to 17"),
        ({"head": nn.Linear(16, 18), "decoder_start_id": 19}, "decoder_start_id is 19, not an id from 0 to 17"),
        ({"head": nn.Sequential(nn.Linear(16, 20))}, "head is a Sequential, not exactly torch.nn.Linear"),
        ({"positions": torch.ones(9, 8)}, "positions is 8 wide"),
        ({"positions": torch.ones(3, 9, 16)}, "positions has shape [3, 9, 16]"),
        ({"positions": "sinusoidal"}, "positions is a str"),
        ({"positions": torch.ones(9, 16), "max_length": 10}, "max_length is 10 and positions hold 9"),
        ({"positions": torch.ones(0, 16)}, "positions has 0 rows"),
        ({"positions": torch.ones(9, 16).to_sparse()}, "positions is as a sparse"),
        ({"positions": torch.ones(9, 16, device="meta")}, "positions is on the meta device"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 10**9}, "max_length is 1000000000, not a number of positions from 1 to 1000000"),
        ({"embedding_scale": 10**400}, "not a number of float32"),
        ({"embedding_scale": float("nan")}, "embedding_scale is nan"),
        ({"head": nn.Linear(16, 20, device="meta")}, "head has weight on the meta device"),
        ({"pad_id": 20}, "pad_id is 20, not an id from 0 to 19"),
        ({"eos_id": "2"}, "eos_id is '2'"),
        ({"embedding_scale": None}, "embedding_scale is None"),
        ({"tokenizer": "missing.json"}, "tokenizer missing.json cannot be read"),
        ({"tokenizer": tiny.words(21)}, "the source tokenizer has ids up to 20 and the source vocabulary 20 rows"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], part: str) -> None:
    assert_refused(adapter(**changes), part)


def test_all_misfits_are_told_at_once() -> None:
    assert_refused(adapter(head=nn.Linear(8, 20), positions=torch.ones(9, 8), pad_id=99), "head takes 8", "positions is 8", "pad_id is 99")


def test_broken_weights_of_an_adapter_are_named() -> None:
    transformer = nn.Transformer(16, 2, 1, 1, 20)
    transformer.encoder.layers[0].linear2.bias.data[0] = torch.nan
    assert_refused(adapter(transformer=transformer), "transformer.encoder.layers.0.linear2.bias holds NaN")


def test_stacks_of_other_adapters_are_checked() -> None:
    embedding = nn.Embedding(20, 16)
    assert_refused(CausalLM(transformer=nn.Transformer(16, 2), embedding=embedding, pad_id=0, bos_id=1, eos_id=2), "TransformerEncoder")
    assert_refused(Encoder(transformer=tiny.encoder_stack(), embedding=embedding, pooling="max"), "pooling is 'max'")
    assert_refused(Encoder(transformer=tiny.encoder_stack(), embedding=embedding), "embedding", error=UsageError, task="classification")


@pytest.mark.parametrize(
    ("text", "part", "error"),
    [
        ("nomodule_here:build", "no module nomodule_here", UsageError),
        ("mine:nothing", "mine has no nothing", UsageError),
        ("mine:value", "is a int, not a function", UsageError),
        ("mine:fails", "mine:fails failed: RuntimeError: no weights today", CheckpointError),
        ("mine:number", "got a int; return Seq2Seq", CheckpointError),
        ("mine:alone", "a Linear without example inputs", CheckpointError),
        ("needs:build", "importing needs failed: No module named 'not_installed_anywhere'", CheckpointError),
        ("broken:build", "importing broken failed: SyntaxError", CheckpointError),
        ("mine:leaves", "mine:leaves ended with SystemExit: 3", CheckpointError),
        ("leaving:build", "importing leaving ended with SystemExit: bye", CheckpointError),
        ("mine", "mine is a module; write mine:FACTORY", UsageError),
    ],
)
def test_import_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, part: str, error: type[OnnxportError]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nvalue = 3\ndef fails():\n    raise RuntimeError('no weights today\\nmore')\n"
        "def leaves():\n    raise SystemExit(3)\ndef number():\n    return 3\ndef alone():\n    return torch.nn.Linear(2, 2)\n"
    )
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "broken.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    assert_refused(text, part, error=error)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dynamic": {"y": {0: "batch"}}}, "there is no input y, but x"),
        ({"dynamic": {"x": {2: "batch"}}}, "x has 2 axes, and no axis 2"),
        ({"dynamic": {"x": {0: "a", 1: "a"}}}, "a is 3 in x axis 0 and 4 in x axis 1"),
        ({"dynamic": {"x": {0: 7}}}, "x axis 0 is called 7"),
        ({"dynamic": {"x": {1: "width"}}}, "runs at no other size of its free axes"),
        ({"outputs": ["a", "b"], "dynamic": {}}, "outputs names 2 (a, b), and the module gives 1 tensors"),
        ({"outputs": "logits", "dynamic": {}}, "outputs is 'logits', expected a list of names"),
        ({"outputs": [3], "dynamic": {}}, "outputs is [3], expected a list of names"),
        ({"dynamic": [("x", 0)]}, "dynamic is [('x', 0)], expected {input: {axis: name}}"),
        ({"inputs": {"x": torch.rand(3, 4).to_sparse()}}, "input x is as a sparse"),
        ({"inputs": {"x": torch.rand(3, 4, device="meta")}}, "input x is on the meta device"),
        ({"inputs": {"x": torch.full((3, 4), torch.nan)}, "dynamic": {}}, "the module answers NaN in output"),
        ({"outputs": ["x"], "dynamic": {}}, "x is the name of an input and of an output"),
        ({"inputs": {}}, "Module needs example inputs"),
        ({"inputs": {"x": 3}}, "hold no tensor"),
        ({"inputs": {"x": torch.ones(3, 5)}}, "does not run on its example inputs"),
    ],
)
def test_modules(changes: dict[str, Any], part: str) -> None:
    assert_refused(Module(Named(), **({"inputs": {"x": torch.rand(3, 4)}} | changes)), part)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Answering(nn.Module):
    """Answers whatever `answer` makes of its input."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (lambda x: (3, "text"), "the module gives no tensor, but int, str"),
        (lambda x: [], "the module gives no tensor, but nothing"),
        (lambda x: sys.exit(4), "the model ended with SystemExit: 4"),
    ],
)
def test_modules_without_an_answer(answer: Any, part: str) -> None:
    assert_refused(Module(Answering(answer), inputs={"x": torch.rand(3, 4)}), part)


def test_broken_weights_of_a_module_are_named() -> None:
    module = Named()
    module.linear.bias.data[1] = torch.inf
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.register_buffer("table", torch.tensor([0.0, torch.nan]))
    message = assert_refused(Module(module, inputs={"x": torch.rand(3, 4)}), "linear.bias holds NaN or infinity", "table holds NaN")
    assert "mask" not in message


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_untraceable_module_tells_torchs_reason() -> None:
    assert_refused(Module(Branching(), inputs={"x": torch.rand(3, 4)}, dynamic={}), "torch could not trace model")
