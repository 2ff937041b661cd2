"""Every source that cannot be exported is refused in one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from onnxport.errors import CheckpointError, OnnxportError, UsageError
from onnxport.export import CausalLM, Encoder, Module, Seq2Seq, export
from onnxport.export.source import resolve


def assert_refused(source: Any, *parts: str, error: type[OnnxportError] = CheckpointError, **options: Any) -> str:
    """One line with every one of `parts` in it."""
    with pytest.raises(error) as caught:
        export(source, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    for part in parts:
        assert part in message
    return message


def folder_with(tmp_path: Path, **tensors: Any) -> Path:
    """The folder with tensors replaced; `...` drops one."""
    changed = tiny.weights_of(tiny.CONFIG) | {name.replace("__", "."): value for name, value in tensors.items()}
    return tiny.write_folder(tmp_path, {name: value for name, value in changed.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"d_model": 21}, ["d_model 21 does not divide by nhead 2"]),
        ({"d_model": "20"}, ["d_model is '20', expected an integer from 1"]),
        ({"d_model": True}, ["d_model is True"]),
        ({"num_encoder_layers": 0}, ["num_encoder_layers is 0, expected an integer from 1"]),
        ({"num_decoder_layers": -1}, ["num_decoder_layers is -1"]),
        ({"nhead": 0}, ["nhead is 0"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps is 0, expected a number above 0"]),
        ({"activation": "swish"}, ["activation is 'swish', expected one of 'relu', 'gelu'"]),
        ({"positions": "rotary"}, ["positions is 'rotary'", "'sinusoidal', 'learned', 'none'"]),
        ({"norm_first": 1}, ["norm_first is 1, expected one of True, False"]),
        ({"tie_embeddings": "source"}, ["tie_embeddings is 'source'"]),
        ({"tie_embeddings": True, "target_vocab_size": 41}, ["source_vocab_size is 40 and target_vocab_size 41"]),
        ({"pad_id": 40}, ["pad_id is 40 but target_vocab_size is 40"]),
        ({"eos_id": 99}, ["eos_id is 99"]),
        ({"bos_id": -1}, ["bos_id is -1"]),
        ({"max_length": ...}, ["max_length is missing, which sinusoidal positions need"]),
        ({"nhead": ..., "pad_id": ...}, ["nhead is missing", "pad_id is missing"]),
        ({"num_experts": 8}, ["num_experts is not a key of this architecture"]),
        ({"custom_encoder": None}, ["custom_encoder is not a key"]),
        ({"task": "classification"}, ["task is 'classification'", "'translation'"]),
        ({"embedding_scale": "sqrt"}, ["embedding_scale is 'sqrt', expected a number"]),
        ({"dropout": 2}, ["dropout is 2"]),
        ({"architecture": "torch.nn.LSTM"}, ["'torch.nn.LSTM'", 'known for now: "architecture": "torch.nn.Transformer"']),
        ({"architecture": ...}, ["no architecture", "torch.nn.Transformer"]),
        ({"architecture": ..., "model_type": "marian"}, ["model_type 'marian'", "torch.nn.Transformer"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_config(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_refused(tiny.write_folder(tmp_path, tiny.weights_of(tiny.CONFIG), **changes), *parts)


def test_all_config_problems_are_told_at_once(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path, tiny.weights_of(tiny.CONFIG), nhead="2", extra=1, eos_id=..., num_encoder_layers=0)
    assert_refused(source, "nhead is '2'", "extra is not a key", "eos_id is missing", "num_encoder_layers is 0")


def test_config_is_not_json(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "config.json").write_text("{'d_model': 20}")
    assert_refused(source, "config.json is not valid JSON")
    (source / "config.json").write_text("[1]")
    assert_refused(source, "holds a JSON list, not an object")


def test_config_or_weights_or_folder_missing(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "does not exist", error=UsageError)
    assert_refused(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert_refused(tmp_path, "has no weights; expected model.safetensors")
    assert_refused(tmp_path / "config.json", "is a file, not a folder")


def test_all_weight_problems_are_told_at_once(tmp_path: Path) -> None:
    names = {
        "transformer__encoder__norm__weight": ...,
        "transformer__decoder__norm__bias": ...,
        "surprise__weight": torch.ones(2),
        "source_embedding__weight": torch.ones(39, 20),
        "transformer__encoder__norm__bias": torch.full((20,), torch.nan),
        "transformer__decoder__norm__weight": torch.ones(20, dtype=torch.int32),
    }
    source = folder_with(tmp_path, **names)
    tiny.words(45).save(str(source / "tokenizer.json"))
    assert_refused(
        source,
        "missing tensors: transformer.encoder.norm.weight, transformer.decoder.norm.bias",
        "unexpected tensors: surprise.weight",
        "source_embedding.weight has shape [39, 20], expected [40, 20]",
        "transformer.encoder.norm.bias holds NaN or infinity",
        "transformer.decoder.norm.weight is int32, expected a floating type",
        "the source tokenizer has ids up to 44 and the source vocabulary 40 rows",
        "the target tokenizer",
    )


def test_infinite_weight(tmp_path: Path) -> None:
    assert_refused(folder_with(tmp_path, source_embedding__weight=torch.full((40, 20), torch.inf)), "source_embedding.weight holds NaN or")


def test_head_beside_tied_embeddings(tmp_path: Path) -> None:
    assert_refused(folder_with(tmp_path, head__weight=torch.ones(40, 20)), "unexpected tensors: head.weight")


def test_truncated_weights(tmp_path: Path) -> None:
    path = tiny.write_folder(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    for end in (len(data) // 2, 20, 0):
        path.write_bytes(data[:end])
        assert_refused(tmp_path, "model.safetensors is not a whole safetensors file", "copy it again")


def test_pickles_only_with_leave(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "model.safetensors").unlink()
    for name in ("model.pt", "model.pth", "pytorch_model.bin"):
        torch.save({"state_dict": tiny.weights_of(tiny.CONFIG)}, source / name)
        assert_refused(source, name, "pickled weights", "--allow-pickle")
        assert resolve(source, allow_pickle=True).adapter.pad_id == 0
        (source / name).unlink()


def test_pickle_with_code_or_damage_is_refused_even_with_leave(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2), source / "model.pt")
    assert_refused(source, "cannot be read as weights only", allow_pickle=True)
    (source / "model.pt").write_bytes(b"no pickle at all")
    assert_refused(source, "cannot be read as weights only", allow_pickle=True)
    torch.save([torch.ones(2)], source / "model.pt")
    assert_refused(source, "holds a list, expected a state_dict", allow_pickle=True)


def test_tokenizer_that_is_none(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    assert_refused(source, "tokenizer.json is not a tokenizer.json")


@pytest.mark.parametrize("opset", [17, 22, 99])
def test_opset(tmp_path: Path, opset: int) -> None:
    assert_refused(tmp_path, f"opset {opset} cannot be written", error=UsageError, opset=opset)


def test_impossible_task(folder: Path) -> None:
    assert_refused(folder, "task classification is not possible for this Seq2Seq", "translation", error=UsageError, task="classification")


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


@pytest.mark.parametrize(
    ("transformer", "part"),
    [
        (lambda: Subclass(16, 2, 1, 1, 20), "transformer is a Subclass, not exactly torch.nn.Transformer"),
        (lambda: nn.Transformer(16, 2, 1, 1, 20, custom_encoder=nn.Identity()), "transformer.encoder is a Identity"),
        (
            lambda: nn.Transformer(16, 2, 1, 1, 20, custom_encoder=nn.TransformerEncoder(OwnLayer(16, 2, 20), 1)),
            "transformer.encoder.layers.0 is a OwnLayer",
        ),
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
        ({"source_embedding": None}, "needs source_embedding"),
        ({"source_embedding": nn.Embedding(20, 8)}, "source_embedding is 8 wide and the transformer 16"),
        ({"source_embedding": nn.Embedding(20, 16, max_norm=1.0)}, "max_norm"),
        ({"head": nn.Linear(8, 20)}, "head takes 8 and the transformer gives 16"),
        ({"head": nn.Sequential(nn.Linear(16, 20))}, "head is a Sequential, not exactly torch.nn.Linear"),
        ({"positions": torch.ones(9, 8)}, "positions is 8 wide"),
        ({"positions": torch.ones(3, 9, 16)}, "positions has shape [3, 9, 16]"),
        ({"positions": "sinusoidal"}, "positions is a str"),
        ({"positions": torch.ones(9, 16), "max_length": 10}, "max_length is 10 and positions hold 9"),
        ({"max_length": 0}, "max_length is 0"),
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
    ],
)
def test_import_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, part: str, error: type[OnnxportError]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nvalue = 3\ndef fails():\n    raise RuntimeError('no weights today\\nmore')\n"
        "def number():\n    return 3\ndef alone():\n    return torch.nn.Linear(2, 2)\n"
    )
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
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


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_untraceable_module_tells_torchs_reason() -> None:
    assert_refused(Module(Branching(), inputs={"x": torch.rand(3, 4)}, dynamic={}), "torch could not trace model")
