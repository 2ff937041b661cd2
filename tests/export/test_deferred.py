"""Weights of 16 bits stay in their file; the export is the one of a model that is in memory as float32, bit for bit."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onnxport.export import deferred, stages
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.hugging_face import folder as hugging_face
from onnxport.export.routes import canonical
from onnxport.graph import store
from support import causal_folders


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


def test_an_error_in_one_call_ends_all() -> None:
    model = Blocks().requires_grad_(False)
    _deferred(model)
    with pytest.raises(IndexError):
        deferred.in_step([model], [lambda: model(torch.arange(3)), lambda: model(torch.tensor([9]))])


def test_a_checkpoint_in_bfloat16_exports_as_if_it_were_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = causal_folders.write(tmp_path / "llama", "llama", num_hidden_layers=1)
    file = source / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    lazy = stages.export(source)
    found = {name: value.const_value for name, value in lazy.graphs["decoder"].graph.initializers.items()}
    weights = [name for name, tensor in found.items() if isinstance(tensor, ir.LazyTensor)]
    assert len(weights) == 9  # a table, a head, four products and three norms
    whole: dict[str, Tensor] = {}

    def no_trace(model: CanonicalModel, opset: int) -> ir.Model:
        graph = model.graphs["decoder"]
        whole.update({graph.names.parameters[name]: tensor for name, tensor in graph.module.named_parameters()})
        return lazy.graphs["decoder"]

    monkeypatch.setattr(hugging_face, "half_types", lambda tensors: {})
    monkeypatch.setattr(canonical, "trace_decoder", no_trace)
    plain = stages.export(source)
    assert plain.goldens.keys() == lazy.goldens.keys()
    assert all(np.array_equal(array, lazy.goldens[name]) for name, array in plain.goldens.items())
    assert all(np.array_equal(tensor, found[name].numpy()) for name, tensor in whole.items())
    store.write(lazy.graphs, tmp_path / "written")
    read = {tensor.name: tensor for tensor in ir.load(tmp_path / "written/decoder.onnx").graph.initializers.values()}
    assert all(np.array_equal(tensor, read[name].const_value.numpy()) for name, tensor in whole.items())
