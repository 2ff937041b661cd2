"""INT8 with calibrated scales: the range collector, what ONNX Runtime runs, tied weights, and layers that one scale does not serve."""

import numpy as np
import pytest

from onnxport.graph.store import write
from onnxport.quantize.activation_statistics import BINS, METHODS, Range, Sample
from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards.static_outliers import ROWS, settle
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.int8 import grid

RNG = np.random.default_rng(0)


def seen(*parts):
    found = Range()
    for part in parts:
        found.add(np.asarray(part, np.float32)[:, None])
    return found


def relative(got, expected):
    return float(np.sqrt(((got - expected) ** 2).mean() / expected.var()))


def test_a_histogram_grows_without_losing_counts_or_taking_memory():
    parts = [RNG.standard_normal(1000) * size for size in (1e-3, 1, 0.1, 5e3)]
    found = seen(np.zeros(10), *parts)
    values = np.concatenate([np.zeros(10), *parts]).astype(np.float32)
    assert (found.low, found.high) == (values.min(), values.max()) and found.counts.shape == (BINS,)
    places = np.histogram(values.astype(np.float64), found.edges)[0]
    assert found.counts.sum() == len(values)
    assert np.abs(np.cumsum(found.counts) - np.cumsum(places)).max() == 0
    assert found.reach / 2 < np.abs(values).max() <= found.reach


def test_values_that_are_all_alike_have_limits():
    for value in (0.0, 3.0, -2.0):
        for method in METHODS:
            step, zero = grid(seen(np.full(9, value)).limits(method))
            assert np.float32(np.rint(value / step) * step) == pytest.approx(value) and 0 <= zero <= 255


def quantized(values, limits):
    step, zero = grid(limits)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - float(zero)) * step


def test_each_method_does_what_it_says():
    """Half normal, as after ReLU, with one outlier."""
    values = np.abs(RNG.standard_normal(1_000_000)).astype(np.float32)
    values[7] = 40
    found = seen(values)
    limits = {method: found.limits(method) for method in METHODS}
    assert limits["minmax"] == (values.min(), 40)
    assert limits["percentile"][1] == pytest.approx(np.quantile(values, 0.99995), rel=0.01)
    errors = {method: np.square(quantized(values, found.limits(method)) - values).mean() for method in METHODS}
    assert limits["mse"][1] < 20 and errors["mse"] <= min(errors["minmax"], errors["percentile"])
    assert errors["mse"] < 0.7 * errors["minmax"]
    assert 0 < limits["entropy"][1] < 40


def test_entropy_is_onnx_runtimes():
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = RNG.standard_t(4, 50_000).astype(np.float32)
    values[0] = 32.0
    values = np.clip(values, -32, 32)
    collector = HistogramCollector("entropy", False, 512, 128, None, "same")
    collector.collect_value({"x": values})
    low, high = collector.compute_entropy()["x"][:2]
    found = seen(*np.split(values, 10)).limits("entropy")
    np.testing.assert_allclose(found, (low, high), atol=2 * 64 / 512)


def two_layers(tools):
    weights = {"up.weight": RNG.standard_normal((32, 64)).astype(np.float32), "up.bias": RNG.standard_normal(64).astype(np.float32)}
    weights |= {"down.weight": RNG.standard_normal((64, 24)).astype(np.float32)}
    nodes = [
        ("MatMul", ["x", "up.weight"], ["a"]), ("Add", ["a", "up.bias"], ["b"]), ("Relu", ["b"], ["c"]),
        ("MatMul", ["c", "down.weight"], ["y"]),
    ]  # fmt: skip
    return tools.build(nodes, {"x": ["n", "l", 32]}, {"y": ["n", "l", 24]}, weights)


@pytest.mark.parametrize("scheme", ["int8-static-minmax", "int8-static-percentile", "int8-static", "int8-static-mse-tensor"])
def test_the_products_become_kernels_of_integers(session, tools, tmp_path, scheme):
    model = two_layers(tools)
    feeds = {"encoder": [{"x": RNG.standard_normal((3, 50, 32)).astype(np.float32)} for _ in range(4)]}
    done, became = quantize({"encoder": model}, Plan({"*": scheme}), feeds)
    assert became == {"up.weight": scheme, "down.weight": scheme}
    write(done, tmp_path)
    kinds = tools.running(tmp_path / "encoder.onnx")
    assert kinds.count("MatMulIntegerToFloat") == 2 and kinds.count("QuantizeLinear") == 2
    assert not {"MatMul", "DequantizeLinear"} & set(kinds)
    x = RNG.standard_normal((2, 7, 32)).astype(np.float32)
    got, expected = (tools.run(session(m), {"x": x})["y"] for m in (done["encoder"], model))
    assert relative(got, expected) < 0.03


@pytest.mark.parametrize("tensor", ["", "-tensor"])
def test_tied_weights_are_stored_once_and_still_multiplied_as_integers(session, tools, tmp_path, tensor):
    table = RNG.standard_normal((80, 32)).astype(np.float32)
    nodes = [("Gather", ["embedding.weight", "input_ids"], ["x"]), ("Gemm", ["x", "embedding.weight"], ["y"], {"transB": 1})]
    model = tools.build(nodes, {"input_ids": ("int64", ["n"])}, {"y": ["n", 80]}, {"embedding.weight": table})
    ids = np.arange(80)
    done, _ = quantize({"decoder": model}, Plan({"*": f"int8-static-minmax{tensor}"}), {"decoder": [{"input_ids": ids}]})
    write(done, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size < 80 * 32 + 2 * 80 * 4 + 256
    kinds = tools.running(tmp_path / "decoder.onnx")
    assert "MatMulIntegerToFloat" in kinds and not {"MatMul", "Gemm", "Transpose", "DequantizeLinear"} & set(kinds)
    assert relative(tools.run(session(done["decoder"]), {"input_ids": ids})["y"], table @ table.T) < 0.03


def test_a_layer_with_outliers_is_given_row_scales_and_named(session, tools):
    """One token in fifty has a channel a thousand times as large; the second layer reads the same without it."""
    weights = {f"{name}.weight": RNG.standard_normal((32, 16)).astype(np.float32) for name in ("wild", "calm")}
    nodes = [("MatMul", ["x", "wild.weight"], ["a"]), ("Clip", ["x", "low", "high"], ["c"]), ("MatMul", ["c", "calm.weight"], ["b"])]
    weights |= {"low": np.float32(-3), "high": np.float32(3)}
    model = tools.build([*nodes, ("Add", ["a", "b"], ["y"])], {"x": ["n", 32]}, {"y": ["n", 16]}, weights)
    x = RNG.standard_normal((1000, 32)).astype(np.float32)
    x[::50, 5] = 1000
    feeds = {"encoder": [{"x": x[i : i + 100]} for i in range(0, 1000, 100)]}
    plan = settle({"encoder": model}, Plan({"*": "int8-static"}), feeds)
    assert plan.schemes == {"*": "int8-static", "wild.weight": "int8-rows"}
    done, became = quantize({"encoder": model}, plan, feeds)
    assert became == {"calm.weight": "int8-static", "wild.weight": "int8-rows"}
    usual = np.delete(x, np.arange(0, 1000, 50), 0)
    got, expected = (tools.run(session(m), {"x": usual})["y"] for m in (done["encoder"], model))
    assert relative(got, expected) < 0.02
    reduced = settle({"encoder": model}, Plan({"*": "int8-static-minmax-reduced"}), feeds)
    assert reduced.schemes["wild.weight"] == "int8-rows-reduced"


def test_a_sample_is_bounded_and_from_all_that_was_met():
    sample = Sample(ROWS)
    for start in range(0, 10_000, 37):
        sample.add(np.arange(start, min(start + 37, 10_000), dtype=np.float32)[:, None])
    kept = np.stack(sample.kept)[:, 0]
    assert ROWS / 2 < len(kept) <= ROWS and set(np.diff(kept)) == {sample.stride} and kept[-1] > 9_900


def test_a_bias_of_one_number_stays_a_sum_of_its_own(session, tools):
    """The kernel reads as many numbers of a bias as there are outputs."""
    weights = {"a.weight": RNG.standard_normal((64, 96)), "b.weight": RNG.standard_normal((96, 48)), "c": np.array([0.5]), "d": np.ones(48)}
    nodes = [("Gemm", ["x", "a.weight", "c"], ["h"]), ("Gemm", ["h", "b.weight", "d"], ["y"])]
    graph = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 48]}, {name: value.astype(np.float32) for name, value in weights.items()})
    x = RNG.standard_normal((32, 64)).astype(np.float32)
    made, became = quantize({"encoder": graph}, Plan({"*": "int8-static-minmax"}), {"encoder": [{"x": x}]})
    assert became == {"b.weight": "int8-static-minmax"}
    expected, found = (tools.run(session(one), {"x": x})["y"] for one in (graph, made["encoder"]))
    assert relative(found, expected) < 0.02
