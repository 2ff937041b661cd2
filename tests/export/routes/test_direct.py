"""The direct route: any module, right at sizes that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from onnxport.errors import CheckpointError
from onnxport.export import Module, export
from onnxport.export.exported import Exported
from onnxport.export.trace.axes import conventional, resized
from support.graph_checks import assert_tensor_graph_equals_original, session


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


@pytest.mark.parametrize("shape", ["transformer", "encoder"])
def test_causal_mask_as_an_input_is_right_at_lengths_not_traced(shape: str) -> None:
    torch.manual_seed(7)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    if shape == "transformer":
        module: nn.Module = nn.Transformer(16, 2, 1, 1, 8, batch_first=True)
        inputs = {"src": torch.rand(1, 3, 16), "tgt": torch.rand(1, 4, 16), "tgt_mask": mask}
    else:
        module = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 8, batch_first=True), 1)
        inputs = {"src": torch.rand(1, 4, 16), "mask": mask}
    detect = nn.modules.transformer._detect_is_causal_mask
    exported = export(Module(module, inputs=inputs))
    assert nn.modules.transformer._detect_is_causal_mask is detect
    assert_tensor_graph_equals_original(exported)
    longer = {name: tensor.repeat_interleave(3, 1) if tensor.dim() == 3 else tensor for name, tensor in inputs.items()}
    longer = {name: nn.Transformer.generate_square_subsequent_mask(12) if tensor.dim() == 2 else tensor for name, tensor in longer.items()}
    found = session(exported.graphs["model"], "model").run(None, {name: tensor.numpy() for name, tensor in longer.items()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, module.eval()(**longer).numpy(), atol=1e-4)


def test_masks_are_judged_again_after_a_failure() -> None:
    detect = nn.modules.transformer._detect_is_causal_mask
    with pytest.raises(CheckpointError, match="does not run"):
        export(Module(nn.Transformer(16, 2, 1, 1, 8), inputs={"src": torch.rand(3, 1, 5), "tgt": torch.rand(3, 1, 5)}))
    assert nn.modules.transformer._detect_is_causal_mask is detect


def test_float64_module_is_exported_in_float32_with_answers_in_float64() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.kinds = nn.Linear(4, 2).double(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kinds.append(x.dtype)
            return self.linear(x)

    module = Kept()
    exported = export(Module(module, inputs={"x": torch.rand(3, 4, dtype=torch.float64)}, dynamic={"x": {0: "batch"}}))
    assert set(module.kinds) == {torch.float64} and module.linear.weight.dtype == torch.float64
    graph = exported.graphs["model"].graph
    assert {value.dtype.name for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]} == {"FLOAT"}
    assert all(value.dtype == np.float32 for value in exported.goldens.values())
    assert_tensor_graph_equals_original(exported)


def test_outputs_that_are_inputs_weights_or_repeated() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            y = x * 2
            return {"first": y, "again": y, "echo": x, "table": self.weight, "count": 3}

    said: list[str] = []
    exported = export(Module(Echo(), inputs={"x": torch.rand(3, 4)}, dynamic={"x": {0: "batch"}}), progress=said.append)
    names = [value.name for value in exported.graphs["model"].graph.outputs]
    assert names == ["first", "again", "echo", "table"]
    assert_tensor_graph_equals_original(exported)
    assert "leaving out what the module gives besides tensors: int" in said


@pytest.mark.parametrize("inplace", [True, False])
def test_buffers_that_a_forward_changes_stay_as_they_were(inplace: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if inplace:
                self.count.add_(1)
            else:
                self.count = self.count + 1
            return x + self.count

    module = Counting()
    buffer = module.count
    first, second = (export(Module(module, inputs={"x": torch.ones(3, 2)}, dynamic={"x": {0: "batch"}})) for _ in range(2))
    assert module.count is buffer and buffer.tolist() == [0.0, 0.0]
    assert all((value == second.goldens[name]).all() for name, value in first.goldens.items())
    assert (first.goldens["case0/out/output"] == 2).all() and (first.goldens["case1/out/output"] == 2).all()
    assert_tensor_graph_equals_original(first)


def test_what_a_users_code_prints_goes_to_standard_error(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "chatty.py").write_text(
        "import torch\nprint('imported')\nclass Loud(torch.nn.Module):\n    def forward(self, x):\n        print('running')\n"
        "        return x * 2\ndef build():\n    print('built')\n    return Loud(), {'x': torch.rand(3, 4)}\n"
    )
    monkeypatch.chdir(tmp_path)
    export("chatty:build")
    out, err = capsys.readouterr()
    assert out == "" and {"imported", "built", "running"} <= set(err.split())
