"""Weights stay in their file; the export is the one of a model that is in memory as float32, bit for bit."""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from onnxport.export import deferred, stages
from onnxport.export.hugging_face import folder as hugging_face
from onnxport.graph import store
from support import causal_folders, encoder_folders, hf_folders


class Blocks(nn.Module):
    """Three layers, each of which notes who ran it, and a head that is the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight
        self.order: list[int] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for i, layer in enumerate(self.layers):
            self.order.append(i)
            x = layer(x).tanh()
        return self.head(x)


def _deferred(model: nn.Module) -> nn.Module:
    held = Blocks().to(torch.bfloat16)
    held.load_state_dict(model.state_dict())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    deferred.defer_all(model)
    return held.float()


def test_deferred_parameters_have_their_values_whoever_reads_them() -> None:
    model = Blocks().requires_grad_(False)
    plain = _deferred(model)
    ids = torch.arange(9)
    assert torch.equal(model(ids), plain(ids))
    assert torch.equal(model.head.weight, plain.head.weight) and model.layers[1].bias.dtype == torch.float32
    assert all(p.isnan().all() and p.dtype == torch.float32 for p in model.parameters())
    assert deferred.parameter(model.head, "weight") is deferred.parameter(model.table, "weight")
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    deferred.materialize(model)
    assert not deferred.has_deferred(model) and model.head.weight is model.table.weight
    assert torch.equal(model(ids), plain(ids)) and all(
        torch.equal(*pair) for pair in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_calls_go_through_the_layers_in_step_and_answer_as_they_would_alone() -> None:
    model = Blocks().requires_grad_(False)
    plain = _deferred(model)
    calls = [lambda n=n: model(torch.arange(n)) for n in (2, 5, 9)]
    found = deferred.in_step([model], calls)
    assert model.order == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for one, n in zip(found, (2, 5, 9), strict=True):
        assert torch.equal(one, plain(torch.arange(n)))


class Chain(nn.Sequential):
    """Somebody's own class."""


def _met(own: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of two calls were in the second layer at a time, at most."""
    monkeypatch.setattr(deferred, "cores", lambda: 2)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)).requires_grad_(False)
    model = (Chain if own else nn.Sequential)(*layers)
    whole = nn.ModuleDict({"layers": layers, "run": model})
    deferred.defer_all(whole)
    inside, most, lock, both = 0, 0, threading.Lock(), threading.Event()

    def enter(*_: Any) -> None:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
            if inside == 2:
                both.set()
        both.wait(0.3 if own or threads > 1 else 30)

    def leave(*_: Any) -> None:
        nonlocal inside
        with lock:
            inside -= 1

    inner = layers.get_submodule("1.0")
    inner.register_forward_pre_hook(enter)
    inner.register_forward_hook(leave)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = deferred.in_step([whole], [lambda n=n: model(torch.ones(n, 4)) for n in (2, 3)])
        alone = [model(torch.ones(n, 4)) for n in (2, 3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    return most


def test_calls_share_the_cores_where_a_class_is_known_and_torch_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _met(own=False, threads=1, monkeypatch=monkeypatch) == 2
    assert _met(own=True, threads=1, monkeypatch=monkeypatch) == 1  # somebody else's class may write to itself
    assert _met(own=False, threads=2, monkeypatch=monkeypatch) == 1


def test_classes_that_write_to_themselves_run_one_at_a_time() -> None:
    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    assert deferred._runs_in_threads(llama) and deferred._runs_in_threads(transformers.BertModel(transformers.BertConfig(**small)))
    llama.model.rotary_emb.rope_type = "longrope"
    assert not deferred._runs_in_threads(llama)
    llama.model.rotary_emb.rope_type = {"full_attention": "default", "sliding_attention": "dynamic"}
    assert not deferred._runs_in_threads(llama)
    recurrent = transformers.RecurrentGemmaConfig(**small, num_key_value_heads=1, lru_width=16, attention_window_size=8)
    assert not deferred._runs_in_threads(transformers.RecurrentGemmaForCausalLM(recurrent))


def test_values_are_made_once_for_calls_that_run_at_the_same_time() -> None:
    made: list[int] = []

    def values() -> torch.Tensor:
        made.append(1)
        time.sleep(0.2)  # all others have asked by then
        return torch.ones(3)

    kept = deferred.Kept()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept.of(values, 12), range(64)))
    assert len(made) == 1 and all(one is found[0] for one in found)


def test_values_may_be_made_of_others() -> None:
    kept = deferred.Kept()
    inner = functools.partial(torch.full, (2,), 3.0)
    assert kept.of(lambda: kept.of(inner, 8) * 2, 8).tolist() == [6.0, 6.0]


def test_a_table_wider_than_a_layer_stays_beside_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "LEAST_KEPT", 0)
    model = Blocks().requires_grad_(False)
    _deferred(model)
    table = model.table.weight
    for layer in model.layers:
        assert layer.bias is layer.bias
    assert model.table.weight is table


def test_an_error_in_one_call_ends_all() -> None:
    model = Blocks().requires_grad_(False)
    _deferred(model)
    with pytest.raises(IndexError):
        deferred.in_step([model], [lambda: model(torch.arange(3)), lambda: model(torch.tensor([9]))])


def _llama(folder: Path) -> Path:
    return causal_folders.write(folder, "llama", num_hidden_layers=1)


def _roberta(folder: Path) -> Path:
    return encoder_folders.write(folder, encoder_folders.make("roberta", "single"), "roberta")


def _xlnet(folder: Path) -> Path:
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24)
    return _saved(transformers.XLNetModel(config), folder)


def _t5(folder: Path) -> Path:
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return _saved(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)), folder)


def _mixtral(folder: Path) -> Path:
    """Traced as its own class, with experts that are joined."""
    return causal_folders.write(folder, "mixtral", num_hidden_layers=1)


def _saved(model: Any, folder: Path) -> Path:
    causal_folders.randomize(model)
    model.eval().save_pretrained(folder)
    return folder


def _stored_as(folder: Path, kind: torch.dtype, pickled: bool) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(kind) for name, tensor in load_file(file).items()}
    if pickled:
        file.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("write", [_llama, _roberta, _xlnet, hf_folders.marian, hf_folders.bart, _t5, _mixtral], ids=lambda f: f.__name__)
def test_a_checkpoint_exports_as_if_it_were_in_memory(
    write: Callable[[Path], Path], kind: torch.dtype, pickled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "model")
    _stored_as(source, kind, pickled)
    lazy = stages.export(source, allow_pickle=pickled)
    monkeypatch.setattr(hugging_face, "held_types", lambda tensors: {})
    monkeypatch.setattr(hugging_face, "defer_all", lambda module: None)
    plain = stages.export(source, allow_pickle=pickled)
    assert plain.goldens.keys() == lazy.goldens.keys()
    assert all(np.array_equal(array, lazy.goldens[name]) for name, array in plain.goldens.items())
    for role, graph in plain.graphs.items():
        found, held = lazy.graphs[role].graph.initializers, graph.graph.initializers
        assert [*found] == [*held]
        for name, value in held.items():
            assert np.array_equal(value.const_value.numpy(), found[name].const_value.numpy()), name
        large = [value.const_value for value in found.values() if value.const_value.size > 100]
        assert any(isinstance(tensor, ir.LazyTensor) for tensor in large)


def test_what_is_written_is_what_recipes_make(tmp_path: Path) -> None:
    source = _llama(tmp_path / "llama")
    lazy = stages.export(source)
    found = {name: value.const_value for name, value in lazy.graphs["decoder"].graph.initializers.items()}
    weights = [name for name, tensor in found.items() if isinstance(tensor, ir.LazyTensor)]
    assert len(weights) == 9  # a table, a head, four products and three norms
    store.write(lazy.graphs, tmp_path / "written")
    read = {tensor.name: tensor for tensor in ir.load(tmp_path / "written/decoder.onnx").graph.initializers.values()}
    assert all(np.array_equal(found[name].numpy(), read[name].const_value.numpy()) for name in weights)
