"""The direct route: any module, right at sizes that were not traced."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from graphs import assert_tensor_graph_equals_original, session
from torch import nn

from onnxport.export import Module, export
from onnxport.export.axes import conventional
from onnxport.export.result import Exported
from onnxport.export.sampling import resized


def test_transformer_traced_from_a_batch_of_one_is_right_everywhere(plain: Exported) -> None:
    assert_tensor_graph_equals_original(plain)
    assert plain.route == "direct" and plain.task == "tensor" and plain.expected == {}
    shapes = {(plain.goldens[f"case{i}/in/src"].shape[:2], plain.goldens[f"case{i}/in/tgt"].shape[0]) for i in range(4)}
    assert ((10, 1), 7) in shapes and len(shapes) == 4
    running = session(plain.graphs["model"], "model")
    for source, target, batch in ((1, 1, 1), (3, 17, 4), (50, 2, 2)):
        src, tgt = np.random.rand(source, batch, 64).astype(np.float32), np.random.rand(target, batch, 64).astype(np.float32)
        assert running.run(None, {"src": src, "tgt": tgt})[0].shape == (target, batch, 64)


class Pair(NamedTuple):
    total: torch.Tensor
    gate: torch.Tensor


class Several(nn.Module):
    def forward(self, ids: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], scale: float = 1.0) -> dict[str, Any]:
        x = nn.functional.one_hot(ids, 7).float().sum(-1) + state[0] * scale
        return {"pair": Pair(x, state[1] > 0), "mean": x.mean(-1)}


def test_nested_inputs_and_outputs_get_names() -> None:
    inputs = {"ids": torch.arange(6).reshape(2, 3), "state": (torch.rand(2, 3), torch.randn(2, 3)), "scale": 2.0}
    axes = {0: "batch", 1: "length"}
    exported = export(Module(Several(), inputs=inputs, dynamic={"ids": axes, "state_0": axes, "state_1": axes}))
    assert [value.name for value in exported.graphs["model"].graph.inputs] == ["ids", "state_0", "state_1"]
    assert [value.name for value in exported.graphs["model"].graph.outputs] == ["pair_total", "pair_gate", "mean"]
    assert_tensor_graph_equals_original(exported)


@pytest.fixture(scope="module")
def unknown() -> Exported:
    """A module of no class we know, given without its free axes; its two layers are equal."""
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    module[2].load_state_dict(module[0].state_dict())
    return export((module, (torch.rand(1, 5, 6),)))


def test_free_axes_of_an_unknown_module_are_found(unknown: Exported) -> None:
    assert unknown.settings["free_axes"] == {"input": {"0": "input_0", "1": "input_1"}}
    assert_tensor_graph_equals_original(unknown)


def test_equal_parameters_keep_their_names(unknown: Exported) -> None:
    names = [name for name in unknown.graphs["model"].graph.initializers if not name.startswith("constant/")]
    assert sorted(names) == ["0.bias", "0.weight", "2.bias", "2.weight"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_axes_of_transformers_follow_batch_first(batch_first: bool) -> None:
    module = nn.Transformer(16, 2, 1, 1, 8, batch_first=batch_first)
    inputs = {"src": torch.rand(1, 1, 16), "tgt": torch.rand(1, 1, 16)}
    inputs |= {"tgt_mask": torch.rand(1, 1), "src_key_padding_mask": torch.rand(1, 1)}
    found = conventional(module, inputs)
    assert found is not None
    assert found["src"] == ({0: "batch", 1: "source"} if batch_first else {0: "source", 1: "batch"})
    assert found["tgt_mask"] == {0: "target", 1: "target"} and found["src_key_padding_mask"] == {0: "batch", 1: "source"}
    assert conventional(module, {"src": torch.rand(1, 16), "tgt": torch.rand(1, 16)}) == {"src": {0: "source"}, "tgt": {0: "target"}}
    assert conventional(nn.Linear(2, 2), {"input": torch.rand(1, 2)}) is None


def test_resized_examples_keep_masks_and_ids_valid() -> None:
    examples = {"ids": torch.tensor([[5, 9, 2]]), "mask": torch.tensor([[1, 1, 0]]), "keep": torch.tensor([[True, False, False]])}
    free = {name: {0: "batch", 1: "length"} for name in examples}
    found = resized(examples, free, {"batch": 4, "length": 7}, 0)
    assert all(tensor.shape == (4, 7) for tensor in found.values())
    assert set(found["ids"].unique().tolist()) == {2, 5, 9} and len({tuple(row) for row in found["ids"].tolist()}) > 1
    assert (found["mask"] == torch.tensor([1, 1, 0, 1, 1, 0, 1])).all() and found["keep"][:, 0].all()
