"""Scales of blocks in float16: the same answers, fewer bytes, nothing rounded."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.store import write
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks import half_scales
from onnxport.quantize.schemes.blocks.least_error import quantize_nearest
from onnxport.quantize.schemes.blocks.rounding import Grid


def tied(tools, table):
    nodes = [("Gather", ["embedding.weight", "input_ids"], ["row"]), ("Gemm", ["x", "embedding.weight"], ["logits"], {"transB": 1})]
    width = table.shape[1]
    inputs = {"input_ids": ("int64", ["n"]), "x": ["n", width]}
    return tools.build(nodes, inputs, {"row": ["n", width], "logits": ["n", len(table)]}, {"embedding.weight": table})


@pytest.mark.parametrize("scheme", ["int4-blocks32-asym", "int8-blocks32", "int4-blocks16-hqq"])
def test_answers_stay_and_scales_take_half(tools, session, tmp_path, scheme):
    table = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    made, _ = quantize({"decoder": tied(tools, table)}, Plan({"*": scheme}))
    feed = {"input_ids": np.arange(5), "x": table[:5]}
    before, sizes = tools.run(session(made["decoder"]), feed), []
    for name in ("float32", "float16"):
        write(made, tmp_path / name)
        sizes.append((tmp_path / name / "weights.bin").stat().st_size)
        half_scales.store(made["decoder"].graph)
    after = tools.run(session(made["decoder"]), feed)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    scales = 512 * 64 // (16 if "16" in scheme else 32)
    assert sizes[0] - sizes[1] == pytest.approx(2 * scales, abs=512), "once for both uses; files are aligned"
    assert [node.op_type for node in made["decoder"].graph].count("Cast") == 2


def test_a_scale_that_float16_does_not_hold_stays(tools):
    table = (np.random.default_rng(0).standard_normal((64, 64)) * 1e-6).astype(np.float32)
    made, _ = quantize({"decoder": tied(tools, table)}, Plan({"*": "int4-blocks32"}))
    before = {name: value.const_value.numpy() for name, value in made["decoder"].graph.initializers.items()}
    half_scales.store(made["decoder"].graph)
    after = {name: value.const_value.numpy() for name, value in made["decoder"].graph.initializers.items()}
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert ir.DataType.FLOAT16 not in {value.dtype for value in made["decoder"].graph.initializers.values()}


def test_weights_are_rounded_by_the_scales_that_are_stored():
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    grid = quantize_nearest(weight, 4, 32, False).grid
    assert np.array_equal(grid.scale, grid.scale.astype(np.float16).astype(np.float32))
    tiny = Grid(4, 32, np.array([[1e-6, 1.0]], np.float32))
    assert tiny.in_half() is tiny
