"""Masks in which true is padding, under any name, and files whose external data lies behind links, as in a hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from onnxport.build.stages import build
from onnxport.export import export
from onnxport.runtime import load
from support.refusals import assert_refused


class Masked(nn.Module):
    """Attention in which true hides, or lets see."""

    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.embedding, self.hides = nn.Embedding(31, 16), hides

    def forward(self, ids: Tensor, given: Tensor) -> Tensor:
        x = self.embedding(ids)
        hidden = given if self.hides else ~given
        scores = (x @ x.transpose(1, 2)).masked_fill(hidden[:, None, :], -torch.inf)
        return scores.softmax(-1) @ x


@pytest.mark.parametrize(("name", "hides"), [("key_padding_mask", True), ("padding", True), ("attention_mask", False), ("seen", False)])
def test_the_model_tells_what_its_mask_means(tmp_path: Path, name: str, hides: bool) -> None:
    torch.manual_seed(0)
    path, axes = tmp_path / "model.onnx", {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    sample = torch.randint(1, 31, (2, 6)), torch.tensor([[not hides] * 6, [not hides] * 4 + [hides] * 2])
    torch.onnx.export(
        Masked(hides).eval(), sample, str(path), input_names=["ids", name], output_names=["y"],
        dynamic_shapes=(axes, axes), dynamo=True, verbose=False,
    )  # fmt: skip
    goldens = export(str(path)).goldens
    assert sum(case.endswith("/out/y") for case in goldens) > 1 and all(np.isfinite(v).all() for v in goldens.values())
    assert any(array.any() and not array.all() for case, array in goldens.items() if case.endswith(f"/in/{name}"))  # ragged rows too
    ragged = np.arange(7)[None] < np.array([[7], [4], [2]])
    feed = {"ids": np.random.default_rng(0).integers(1, 31, (3, 7)), name: ragged != hides}
    truth = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    with load(build(str(path), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        np.testing.assert_allclose(ours.run(feed)["y"], truth, atol=1e-5)


def cached(folder: Path, under: str) -> Path:
    """A look-up with its table and an axis in external data, as a hub's cache has it: links to blobs."""
    table = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("ReduceSum", ["rows", "axis"], ["y"], keepdims=0)]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 24])
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1], np.int64), "axis")]
    graph = helper.make_graph(nodes, "g", [ids], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place, blobs = folder / "snapshots" / "0a1b" / under, folder / "blobs"
    for one in (place, blobs):
        one.mkdir(parents=True)
    onnx.save(model, blobs / "0", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    os.replace(blobs / "model.onnx_data", blobs / "1")
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        (place / name).symlink_to(os.path.relpath(blobs / str(number), place))
    return place / "model.onnx"


@pytest.mark.parametrize("under", ["", "onnx"])
def test_external_data_behind_the_links_of_a_cache(tmp_path: Path, under: str) -> None:
    path = cached(tmp_path / "cache", under)
    table = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    ids = np.array([[3, 5, 7], [1, 39, 2]])
    with load(build(str(path), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        np.testing.assert_allclose(ours.run({"ids": ids})["y"], table[ids].sum(1), atol=1e-5)


def test_external_data_that_a_link_leads_elsewhere_for(tmp_path: Path) -> None:
    path = cached(tmp_path / "cache", "")
    data = path.with_name("model.onnx_data")
    os.replace(tmp_path / "cache" / "blobs" / "1", tmp_path / "elsewhere")
    data.unlink()
    data.symlink_to(tmp_path / "elsewhere")
    assert_refused(path, "reads its weights from model.onnx_data, expected a file in its own folder")
