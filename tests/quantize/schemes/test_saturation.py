"""What processors without VNNI do to products of uint8 and int8: pairs are added in 16 bits, which full-range weights overflow."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxport.cli import doctor
from onnxport.compare.measure import machine
from onnxport.graph.store import write
from onnxport.quantize.plan import Plan
from onnxport.quantize.recipe import Recipe, make_graphs
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.int8 import REDUCED, quantize_columns
from onnxport.runtime import processor
from onnxport.runtime.bundle import manifest
from onnxport.runtime.sessions import Sessions

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
        made = make_graphs(Recipe("int8-reduced", Plan({"*": scheme}), lambda: feeds), {"encoder": model}, tmp_path)
        assert any(str(name).endswith("/smoothing") for name in made.models["encoder"].graph.initializers), scheme


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
    integers = [v.const_value.numpy() for v in done["encoder"].graph.initializers.values() if v.dtype == ir.DataType.INT8]
    stored = [array for array in integers if array.ndim == 2]
    assert len(stored) == 2 and {int(np.abs(array).max()) for array in stored} == {REDUCED}
    y = tools.run(session(done["encoder"]), {"input_ids": ids})["y"]
    exact = weights["embedding.weight"] @ weights["fc.weight"]
    assert np.sqrt(((y - exact) ** 2).mean() / exact.var()) < 0.025


@pytest.mark.parametrize(
    ("architecture", "saturates", "said"),
    [
        ("x86_64", True, "no VNNI: int8 takes slower kernels"),
        ("x86_64", False, "VNNI: int8 is exact"),
        ("aarch64", False, None),
        ("x86_64", None, None),
    ],
)
def test_doctor_and_compare_know_the_processor(monkeypatch, architecture, saturates, said):
    facts = {**machine.describe(), "architecture": architecture, "saturates": saturates}
    monkeypatch.setattr(doctor, "describe", lambda packages: facts)
    told = [note for note in doctor.examine()["notes"] if "VNNI" in note]
    assert told == [note for note in told if said and note.startswith(said)] and bool(told) == (said is not None)
    note = machine.saturation_note(facts, ["fp32", "int8", "int8-reduced"])
    assert (note is not None) == bool(saturates) and machine.saturation_note(facts, ["fp32", "int8-reduced"]) is None


def largest(rows, k=64, n=16):
    """Inputs whose sums with weights of 127 are the largest there can be, and those sums."""
    feed = {"x": np.full((rows, k), 255, np.uint8)}
    return feed, np.full((rows, n), 255 * 127 * k)


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("turned", [False, True])
def test_the_runtime_adds_without_loss_on_every_processor(tools, tmp_path, rows, turned):
    feed, right = largest(rows)
    weight = np.full((16, 64) if turned else (64, 16), 127, np.int8)
    nodes = [("Transpose", ["fc.weight"], ["w"], {"perm": [1, 0]})] if turned else []
    nodes.append(("MatMulInteger", ["x", "w" if turned else "fc.weight"], ["y"]))
    model = tools.build(nodes, {"x": ("uint8", ["n", 64])}, {"y": ("int32", ["n", 16])}, {"fc.weight": weight})
    write({"model": model}, tmp_path)
    session = Sessions.on("cpu", 1).open(tmp_path / "model.onnx")
    np.testing.assert_array_equal(session.run(None, feed)[0], right)


def test_the_probe_is_the_file_that_it_says_it_is():
    tensor = lambda name, kind: helper.make_tensor_value_info(name, kind, None)  # noqa: E731
    node, inputs = helper.make_node("MatMulInteger", ["a", "b"], ["c"]), [tensor("a", TensorProto.UINT8), tensor("b", TensorProto.INT8)]
    graph = helper.make_graph([node], "", inputs, [tensor("c", TensorProto.INT32)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5)
    assert onnx.load_from_string(processor.PROBE) == model


def test_sessions_are_told_only_where_it_is_needed(monkeypatch):
    key = "session.x64quantprecision"
    monkeypatch.setattr(processor, "saturates", lambda: True)
    assert Sessions("cpu", 1).options().get_session_config_entry(key) == "1"
    for sessions, saturates in ((Sessions("cuda", 1), True), (Sessions("cpu", 1, exact=False), True), (Sessions("cpu", 1), False)):
        monkeypatch.setattr(processor, "saturates", lambda answer=saturates: answer)
        with pytest.raises(RuntimeError, match=key):
            sessions.options().get_session_config_entry(key)


@pytest.mark.parametrize(
    ("plan", "reduced"),
    [
        ({"a": "int8-rows-reduced", "b": "int8-static-mse-reduced", "c": "fp32"}, True),
        ({"a": "int8-rows-reduced", "b": "int8-rows"}, False),
        ({"a": "int8-blocks128"}, False),
        ({"*": "fp32"}, False),
    ],
)
def test_a_variant_of_reduced_weights_has_nothing_to_be_kept_from(plan, reduced):
    told = {"files": [], "bytes": 0, "graphs": {}, "plan": plan}
    assert manifest.variant("int8", told).reduced == reduced


def test_other_architectures_are_not_asked(monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    assert processor.saturates.__wrapped__() is False
