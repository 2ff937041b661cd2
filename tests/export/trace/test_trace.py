"""What holds for every standard graph: its interface, its names, its bytes, and what an export leaves behind (nothing)."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from onnxport.errors import CheckpointError
from onnxport.export import Module, Seq2Seq, export
from onnxport.export.exported import Exported
from onnxport.export.trace.tracer import Names, trace
from onnxport.graph import store
from onnxport.quantize.fusion import fuse
from onnxport.quantize.fusion.check import check_runs
from support import tiny_torch as tiny


def interface(values: Any) -> dict[str, tuple[str, list[Any]]]:
    return {value.name: (value.dtype.name, [d if isinstance(d, int) else d.value for d in value.shape]) for value in values}


def as_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(("fixture", "layers", "size", "vocabulary"), [("from_folder", 1, 16, 40), ("separate", 2, 8, 25)])
def test_seq2seq_interface(request: pytest.FixtureRequest, fixture: str, layers: int, size: int, vocabulary: int) -> None:
    exported: Exported = request.getfixturevalue(fixture)
    encoder, decoder = exported.graphs["encoder"].graph, exported.graphs["decoder"].graph
    assert interface(encoder.inputs) == {"input_ids": ("INT64", ["batch", "source"]), "source_mask": ("INT32", ["batch", "source"])}
    cross = ("FLOAT", ["batch", 2, "source", size])
    names = ["cross_key_0", "cross_value_0", "cross_key_1", "cross_value_1"][: 2 * layers]
    assert list(interface(encoder.outputs).items()) == [(name, cross) for name in names]
    past, shared = ("FLOAT", ["batch", 2, "past", size]), ("FLOAT", ["source_batch", 2, "source", size])
    caches = {f"past_{kind}_{i}": past for i in range(layers) for kind in ("key", "value")}
    assert interface(decoder.inputs) == {
        "input_ids": ("INT64", ["batch", "length"]),
        "position_ids": ("INT64", ["batch", "length"]),
        "logits_index": ("INT64", ["batch"]),
        "self_mask": ("BOOL", ["batch", 1, "length", "total"]),
        **caches,
        "source_mask": ("INT32", ["source_batch", "source"]),
        **dict.fromkeys(names, shared),
    }
    present = ("FLOAT", ["batch", 2, "total", size])
    outputs = {"logits": ("FLOAT", ["batch", vocabulary])} | {name.replace("past", "present"): present for name in caches}
    assert interface(decoder.outputs) == outputs


@pytest.mark.parametrize(
    ("fixture", "opset"), [("from_folder", 23), ("separate", 23), ("plain", 23), ("classifier", 24), ("causal", 25)], ids=str
)
def test_graphs_are_standard_onnx_of_the_asked_opset(request: pytest.FixtureRequest, fixture: str, opset: int) -> None:
    exported: Exported = request.getfixturevalue(fixture)
    assert exported.opset == opset
    for model in exported.graphs.values():
        assert dict(model.opset_imports) == {"": opset} and not model.functions
        assert {node.domain for node in model.graph} == {""}


@pytest.mark.parametrize("fixture", ["from_folder", "separate", "causal", "classifier"])
def test_expected_fusions_are_what_runs(request: pytest.FixtureRequest, fixture: str, tmp_path: Path) -> None:
    exported: Exported = request.getfixturevalue(fixture)
    assert set(exported.expected) == set(exported.graphs)
    fused = {role: fuse(model, role, "cuda") for role, model in exported.graphs.items()}  # the target with every rule
    files = store.write({role: model for role, (model, _) in fused.items()}, tmp_path)
    for role, wanted in exported.expected.items():
        assert {rule: fused[role][1].get(rule, 0) for rule in wanted} == wanted
        assert check_runs(tmp_path / files[role], wanted, "cuda") == wanted


def test_initializers_are_named_after_parameters(from_folder: Exported, separate: Exported) -> None:
    state = set(tiny.weights_of(tiny.CONFIG | {"num_decoder_layers": 1})) | {"positions.weight"}
    for model in from_folder.graphs.values():
        names = {name for name in model.graph.initializers if not name.startswith("constant/")}
        assert {name.removesuffix(".query").removesuffix(".key_value") for name in names} <= state
    for exported, last in ((from_folder, 0), (separate, 1)):
        names = set(exported.graphs["decoder"].graph.initializers)
        assert f"transformer.decoder.layers.{last}.self_attn.in_proj_weight" in names
        assert f"transformer.decoder.layers.{last}.multihead_attn.in_proj_weight.query" in names
    decoder = from_folder.graphs["decoder"].graph
    head = next(node for node in decoder if node.op_type == "Gemm")
    assert head.inputs[1].name == "source_embedding.weight"  # tied: the very tensor that the embedding gathers from
    assert {"head.weight", "head.bias", "target_embedding.weight"} <= set(separate.graphs["decoder"].graph.initializers)


def test_nodes_are_named_after_modules(from_folder: Exported, separate: Exported, plain: Exported) -> None:
    parts = "self_attn/Attention multihead_attn/Attention linear1/MatMul norm3/LayerNormalization multihead_attn.out_proj/"
    for exported, last, final in ((from_folder, 0, "Add"), (separate, 1, "MatMul")):  # no biases to add in the second
        names = [node.name for node in exported.graphs["decoder"].graph]
        assert len(set(names)) == len(names)
        for name in (parts + final).split():
            assert f"transformer.decoder.layers.{last}.{name}" in names
    assert "transformer.encoder.norm/LayerNormalization" in [node.name for node in from_folder.graphs["encoder"].graph]
    assert "encoder.layers.0.linear2/MatMul" in [node.name for node in plain.graphs["model"].graph]


def test_nothing_of_this_machine_is_in_the_bytes(from_folder: Exported, plain: Exported, folder: Path) -> None:
    for exported in (from_folder, plain):
        for model in exported.graphs.values():
            data = as_bytes(model)
            places = (str(Path(torch.__file__).parents[1]).encode(), str(folder).encode())
            for mark in (b".py", b"site-packages", b"File ", b"pkg.torch", *places):
                assert mark not in data, mark
            assert not model.doc_string and not model.graph.metadata_props


def test_hashes_are_of_the_files(folder: Path, from_folder: Exported) -> None:
    assert set(from_folder.source_hashes) == {"config.json", "model.safetensors", "tokenizer.json"}
    for name, digest in from_folder.source_hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


class Watched(nn.Module):
    """Counts what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.modes = nn.Linear(4, 2), nn.Dropout(0.5), 0

    def train(self, mode: bool = True) -> Watched:
        self.modes += 1
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return self.dropout(self.linear(x))


def snapshot(module: nn.Module) -> Any:
    state = [(n, p.requires_grad, p.dtype, p.data_ptr(), p.grad is None, p.detach().clone().tolist()) for n, p in module.named_parameters()]
    modes = [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()]
    switches = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    generators = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    return state, modes, switches, generators, list(sys.path), os.getcwd()


@pytest.mark.parametrize("fails", [False, True])
def test_module_and_process_are_left_as_they_were(fails: bool) -> None:
    module = Watched().train()
    module.dropout.training = False
    module.linear.weight.requires_grad_(False)
    modes = module.modes
    before = snapshot(module)
    adapter = Module(module, inputs={"x": torch.rand(3, 5 if fails else 4)}, dynamic={"x": {0: "batch"}})
    before = (*before[:3], (torch.get_rng_state().tolist(), *before[3][1:]), *before[4:])
    if fails:
        with pytest.raises(CheckpointError, match="does not run"):
            export(adapter)
    else:
        goldens = export(adapter).goldens  # in eval mode: nothing is dropped
        expected = goldens["case0/in/x"] @ module.linear.weight.detach().numpy().T + module.linear.bias.detach().numpy()
        np.testing.assert_allclose(goldens["case0/out/output"], expected, atol=1e-5)
    assert snapshot(module) == before and module.modes == modes


def test_trace_leaves_the_callers_inputs_alone() -> None:
    inputs = {"": (torch.rand(3, 4),)}
    trace(nn.Linear(4, 2), inputs, ({0: "batch"},), ["x"], {"y": ()}, Names(), 23, "model")
    assert list(inputs) == [""] and inputs[""][0].shape == (3, 4)


def test_half_precision_adapter_is_exported_from_a_copy() -> None:
    transformer = tiny.randomized(nn.Transformer(16, 2, 1, 1, 20)).half()
    embedding = nn.Embedding(20, 16).half()
    from onnxport.export.pytorch.parts import prepare

    before = snapshot(transformer)
    adapter = Seq2Seq(transformer=transformer, source_embedding=embedding, pad_id=0, bos_id=1, eos_id=2)
    parts = prepare(adapter)
    assert parts.transformer.encoder.layers[0].linear1.weight.dtype == torch.float32
    assert parts.source_embedding is parts.target_embedding  # one copy: still tied
    assert snapshot(transformer) == before


def test_import_string_leaves_the_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_alone.py").write_text("def build():\n    raise RuntimeError('no')\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(CheckpointError):
        export("left_alone:build")
    assert sys.path == before
