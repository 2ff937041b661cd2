"""What processors without VNNI do to products of uint8 and int8: pairs are added in 16 bits, which full-range weights overflow."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport import doctor
from onnxport.compare import machine
from onnxport.quantize.apply import quantize
from onnxport.quantize.plan import Plan
from onnxport.quantize.rows import REDUCED, quantize_columns
from onnxport.variants import Wish, graphs_of

RNG = np.random.default_rng(0)


def vpmaddubsw(x, weight):
    """uint8 [n, K] times int8 [K, N] as AVX2 does: neighbours in K are added in int16, saturating; the sums of pairs in int32."""
    products = x.astype(np.int32)[:, :, None] * weight.astype(np.int32)[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -32768, 32767).sum(1)


def exactly(x, weight):
    return x.astype(np.int32) @ weight.astype(np.int32)


def parts(scheme):
    """Activations and weights as the graph of a scheme really multiplies them."""
    weight = (1 + 0.2 * RNG.random((64, 16))).astype(np.float32)
    stored, _ = quantize_columns(weight, Plan({"*": scheme}).of("fc.weight"))
    x = (1 + 0.2 * RNG.random((8, 64))).astype(np.float32)
    return np.rint(x / np.abs(x).max(1, keepdims=True) * 127 + 128).astype(np.uint8), stored


@pytest.mark.parametrize("scheme", ["int8-rows", "int8-static"])
def test_full_range_saturates_and_loses(scheme):
    x, weight = parts(scheme)
    right, found = exactly(x, weight), vpmaddubsw(x, weight)
    assert weight.max() == 127 and (found < right).all()
    assert np.abs(found - right).mean() > 0.2 * np.abs(right).mean()


@pytest.mark.parametrize("scheme", ["int8-rows-reduced", "int8-static-reduced", "int8-static-minmax-tensor-reduced"])
def test_reduced_range_cannot_saturate(scheme):
    x, weight = parts(scheme)
    assert np.abs(weight).max() == REDUCED
    np.testing.assert_array_equal(vpmaddubsw(x, weight), exactly(x, weight))
    for sign in (1, -1):  # the worst there is
        worst = np.full((2, 1), sign * REDUCED, np.int8)
        np.testing.assert_array_equal(vpmaddubsw(np.full((1, 2), 255, np.uint8), worst), [[sign * 2 * 255 * REDUCED]])
    assert vpmaddubsw(np.full((1, 2), 255, np.uint8), np.full((2, 1), REDUCED + 1, np.int8)) == 32767  # and one more is too much


def test_activations_of_a_text_encoder_are_smoothed_for_a_reduced_range_too(tools, tmp_path):
    weight = RNG.standard_normal((32, 16)).astype(np.float32)
    model = tools.build([("MatMul", ["x", "fc.weight"], ["y"])], {"x": ["n", 32]}, {"y": ["n", 16]}, {"fc.weight": weight})
    feeds = {"encoder": [{"x": RNG.standard_normal((9, 32)).astype(np.float32)}]}
    for scheme in ("int8-rows", "int8-rows-reduced", "int8-static-minmax-reduced"):
        graphs, _ = graphs_of(Wish("int8-reduced", Plan({"*": scheme}), lambda: feeds), {"encoder": model}, tmp_path)
        assert any(str(name).endswith("/smoothing") for name in graphs["encoder"].graph.initializers), scheme


@pytest.mark.parametrize("scheme", ["int8-rows-reduced", "int8-static-minmax-reduced"])
def test_reduced_weights_reach_the_graph(session, tools, scheme):
    weights = {
        "embedding.weight": RNG.standard_normal((64, 32)).astype(np.float32),
        "fc.weight": RNG.standard_normal((32, 48)).astype(np.float32),
    }
    model = tools.build(
        [("Gather", ["embedding.weight", "input_ids"], ["x"]), ("MatMul", ["x", "fc.weight"], ["y"])],
        {"input_ids": ("int64", ["n"])}, {"y": ["n", 48]}, weights,
    )  # fmt: skip
    ids = np.arange(64)
    done, plan = quantize({"encoder": model}, Plan({"*": scheme}), {"encoder": [{"input_ids": ids}]})
    assert plan == {"embedding.weight": scheme, "fc.weight": scheme}
    stored = [v.const_value.numpy() for v in done["encoder"].graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert len(stored) == 2 and {int(np.abs(array).max()) for array in stored} == {REDUCED}
    y = tools.run(session(done["encoder"]), {"input_ids": ids})["y"]
    exact = weights["embedding.weight"] @ weights["fc.weight"]
    assert np.sqrt(((y - exact) ** 2).mean() / exact.var()) < 0.025


@pytest.mark.parametrize(("features", "warns"), [(["avx2"], True), (["avx2", "avx512_vnni"], False), (["avx_vnni"], False), ([], False)])
def test_doctor_and_compare_know_the_processor(monkeypatch, features, warns):
    facts = {**machine.describe(), "architecture": "x86_64", "features": features}
    monkeypatch.setattr(doctor, "describe", lambda packages: facts)
    assert any("int8-reduced (weights of 7 bits" in note for note in doctor.examine()["notes"]) == warns
    note = machine.saturation_note(facts, ["fp32", "int8", "int8-reduced"])
    assert (note is not None) == warns and machine.saturation_note(facts, ["fp32", "int8-reduced"]) is None
    assert machine.saturation_note({**facts, "architecture": "aarch64"}, ["int8"]) is None
