"""A whole standard decoder: fused, written, and run as the runtime runs it."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.errors import FusionError, UsageError
from onnxport.graph.store import write
from onnxport.quantize.fusion import check_runs, fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.half import to_half


@pytest.fixture(scope="module")
def fused(standard):
    return fuse(standard, "decoder", "cpu")


def test_counts_are_those_of_the_layers(fused, standard):
    _, counts = fused
    assert counts["group_query_attention"] == 2
    assert counts["multi_head_attention"] == 2
    assert "skip_layer_norm" not in counts
    # norm1 of layer 0 behind the embedding sum too, and the norm at the end
    assert fuse(standard, "decoder", "cuda")[1] == counts | {"skip_layer_norm": 7}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-weight"])
def test_no_graph_that_runs_on_the_cpu_has_skip_layer_normalization(fused, tools, tmp_path, precision):
    make = {"fp32": lambda m: m, "fp16": lambda m: to_half(m, PRECISIONS["fp16"].plan)} | {
        name: lambda m, r=PRECISIONS[name].plan: quantize({"d": m}, r)[0]["d"] for name in ("int8", "int8-weight")
    }
    write({"decoder": make[precision](fused[0])}, tmp_path / "b")
    runs = tools.running(tmp_path / "b/decoder.onnx")
    assert runs.count("LayerNormalization") == 7 and "GroupQueryAttention" in runs
    assert not [kind for kind in runs if kind.startswith("Skip")]


def test_mask_gives_way_to_lengths(fused, standard):
    model, _ = fused
    names = {v.name: v for v in model.graph.inputs}
    assert "self_mask" not in names
    assert str(names["seqlens_k"].shape) == "[batch]" and len(names["total_sequence_length"].shape) == 0
    assert str(names["past_key_0"].shape) == "[batch,4,capacity,8]"
    assert [v.name for v in model.graph.outputs] == [v.name for v in standard.graph.outputs]
    assert any(v.name == "self_mask" for v in standard.graph.inputs), "the model that was given must stay as it was"


@pytest.mark.parametrize(("sources", "beams", "prompt", "source_length"), [(1, 1, 1, 1), (2, 3, 3, 5), (3, 1, 1, 9), (1, 4, 6, 2)])
def test_same_logits_as_pytorch(fused, eager, session, tools, sources, beams, prompt, source_length):
    for expected, got in tools.replay_cached(eager, session(fused[0]), sources, beams, prompt, 3, source_length):
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5)


def test_ragged_rows(fused, eager, session, tools):
    """Rows of different length in one prefill, then in one step, are what each row is alone."""
    lengths = np.array([2, 4, 1])
    cached = tools.Cached(session(fused[0]), 3, 8)
    inputs = tools.decoder_inputs(3, 1, 4, 0, 5)
    follow = np.array([[7], [8], [9]])
    first = cached({**inputs, "logits_index": lengths - 1}, lengths, 4)
    step = {**inputs, "input_ids": follow, "position_ids": lengths[:, None], "logits_index": np.zeros(3, np.int64)}
    second = cached(step, lengths + 1, 5)
    for row, length in enumerate(lengths):
        for got, extra in ((first, []), (second, follow[row])):
            n = length + len(extra)
            alone = tools.decoder_inputs(1, 1, n, 0, 5)
            alone |= {k: v[row : row + 1] for k, v in inputs.items() if k.startswith(("cross", "source"))}
            alone["input_ids"] = np.concatenate([inputs["input_ids"][row, :length], extra])[None].astype(np.int64)
            np.testing.assert_allclose(got[row], eager(alone)["logits"][0], atol=2e-5, rtol=1e-5)


def test_check_runs_counts_the_graph_that_runs(fused, standard, tmp_path):
    model, counts = fused
    write({"decoder": model}, tmp_path / "fused")
    assert check_runs(tmp_path / "fused/decoder.onnx", counts)["group_query_attention"] == 2
    write({"decoder": standard}, tmp_path / "plain")
    with pytest.raises(FusionError, match=r"decoder.onnx: multi_head_attention found 0 times, expected 2; .*not an integer|.*mask"):
        check_runs(tmp_path / "plain/decoder.onnx", {"multi_head_attention": 2})
    with pytest.raises(FusionError, match="not known"):
        check_runs(tmp_path / "fused/decoder.onnx", {"no_such_rule": 1})


def test_a_decoder_that_fuses_in_part_is_refused(standard):
    broken = standard.clone()
    last = [n for n in broken.graph if n.op_type == "Attention" and n.inputs[3].name == "self_mask"][-1]
    last.attributes.add(ir.AttrInt64("is_causal", 1))
    with pytest.raises(FusionError, match=r"applied to 1 layers.*is_causal"):
        fuse(broken, "decoder", "cpu")


def test_unknown_target(standard):
    with pytest.raises(UsageError, match="target 'tpu'"):
        fuse(standard, "decoder", "tpu")
