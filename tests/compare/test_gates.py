import pytest

from onnxport.compare.gates import evaluate, lookup, parse_gate, quality_of_gate, refuse_unknown
from onnxport.compare.metrics import METRICS
from onnxport.errors import UsageError

VARIANTS = {
    "fp32": {"speedup": 1.0, "bleu_drop": 0.0, "latency_ms": {"p50": 40.0, "p90": 50.0}},
    "fp16": {"speedup": 0.5, "bleu_drop": 0.1, "latency_ms": {"p50": 80.0, "p90": 90.0}},
    "int8-static": {"speedup": 2.0, "bleu_drop": -0.3, "latency_ms": {"p50": 20.0, "p90": 25.0}, "cosine": float("nan"), "device": "cpu"},
}


OTHER = {"speedup": 3.0, "bleu_drop": 0.5, "bleu_drop_ci": {"low": -0.1, "high": 1.1, "p": 0.1, "n": 200}}


def check(expr, variants=VARIANTS):
    if "/" in expr:
        variants = variants | {"new-1.5/int8": OTHER, "new-1": {"5/int8": {"speedup": 0.0}}}
    return evaluate([parse_gate(expr)], variants, "fp32")[0]


@pytest.mark.parametrize(
    "expr, passed, value",
    [
        ("int8-static.speedup>=1.5", True, 2.0),
        ("int8-static.speedup > 2", False, 2.0),
        ("fp32.speedup==1", True, 1.0),
        ("bleu_drop<=0.5", True, 0.1),
        ("bleu_drop<0.1", False, 0.1),
        ("speedup>=1", False, 0.5),
        ("latency_ms.p90<=90", True, 90.0),
        ("int8-static.latency_ms.p90<=2.5e1", True, 25.0),
        ("int8-static.bleu_drop>=-0.3", True, -0.3),
        ("speedup==2", False, 0.5),
        ("int8-static.speedup_ci.low<=2", False, None),
        ("new-1.5/int8.speedup>=3", True, 3.0),
        ("new-1.5/int8.bleu_drop_ci.high<=0.5", False, 1.1),
        ("new-1.5/int8.bleu_drop_ci.low<=0", True, -0.1),
    ],
)
def test_a_gate_holds_or_not(expr, passed, value):
    gate = check(expr)
    assert (gate["expr"], gate["passed"], gate["value"]) == (expr, passed, value)
    assert bool(gate["message"]) is not passed


def test_without_variant_the_reference_is_left_out():
    assert check("bleu_drop>=0.05")["values"].keys() == {"fp16", "int8-static"}


@pytest.mark.parametrize(
    "metric", ["comet", "fp16.comet", "latency_ms", "latency_ms.p75", "device", "cosine", "int8-static.cosine", "int4.speedup"]
)
def test_what_was_not_measured_fails_and_says_so(metric):
    gate = check(f"{metric}>=0")
    assert not gate["passed"]
    assert gate["value"] is None
    assert "was not measured for" in gate["message"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 10**400, "fast", True, [1]])
def test_what_is_no_finite_number_is_not_measured(value):
    assert lookup({"speedup": value}, "speedup") is None


@pytest.mark.parametrize(
    "expr, meant", [("bleu_dorp<=1", "bleu_drop"), ("latency_ms.p9<=1", "latency_ms.p90"), ("fp61.speedup>=1", "fp16.speedup")]
)
def test_a_near_name_is_suggested(expr, meant):
    assert f"did you mean {meant}?" in check(expr)["message"]


def test_a_gate_over_no_variant_fails():
    gate = check("bleu_drop<=1", {"fp32": VARIANTS["fp32"]})
    assert not gate["passed"]
    assert "nothing was checked" in gate["message"]


@pytest.mark.parametrize(
    "expr",
    [
        "",
        "speedup",
        "speedup>=",
        ">=1",
        "speedup>=fast",
        "speedup=>1",
        "speedup!=1",
        "speedup=1",
        "a b>=1",
        "speedup>=nan",
        "speedup>=1.5x",
        "a..b>=1",
        "/int8.speedup>=1",
        "a/b/c>=1",
    ],
)
def test_a_bad_expression_shows_the_grammar(expr):
    with pytest.raises(UsageError, match=r"VARIANT.*METRIC OP NUMBER.*for example"):
        parse_gate(expr)


def refused(expr, has_baseline=False):
    refuse_unknown([parse_gate(expr)], ["fp32", "int8", "int8-static", "new-1.5/int8"], METRICS, has_baseline)


@pytest.mark.parametrize(
    "expr",
    [
        "speedup>=1",
        "int8-static.speedup>=1",
        "new-1.5/int8.bleu_drop_ci.high<=1",
        "fp32.latency_ms.p90<=1",
        "speedup_ci.low>=1",
        "macro_f1>=0.5",
        "perplexity_drop<=1",
        "energy.joules_per_unit<=1",
        "parity.relative_error<=1",
        "throughput_by_batch.8>=1",
        "first_difference.median>=1",
    ],
)
def test_what_a_comparison_may_measure_is_known(expr):
    refused(expr)


@pytest.mark.parametrize(
    "expr, told",
    [
        (
            "comet>=1",
            "'comet' is no metric of this comparison; variants: fp32, int8, int8-static, new-1.5/int8; metrics: .*bleu, bleu_drop",
        ),
        ("bleu_dorp<=1", "'bleu_dorp' is no metric of this comparison; did you mean bleu_drop?"),
        ("int4.speedup>=1", "'int4.speedup' names no variant and no metric of this comparison; did you mean int8.speedup?"),
        ("int8.latency_ms.p75<=1", "'latency_ms.p75' is no metric"),
        ("latency_ms<=1", "'latency_ms' is no metric"),
        ("bleu_drop_ci.middle<=1", "names no variant and no metric"),
        ("int8.speedup_change>=0", "give it with --baseline"),
    ],
)
def test_what_can_never_be_measured_is_refused(expr, told):
    with pytest.raises(UsageError, match=told.replace("?", r"\?")) as caught:
        refused(expr)
    assert "\n" not in str(caught.value)


def test_a_baseline_makes_changes_known():
    refused("int8.speedup_change>=0", has_baseline=True)


@pytest.mark.parametrize(
    "path", ["bleu", "bleu_drop", "bleu_drop_ci.high", "bleu_change", "agreement", "max_abs_diff", "parity.relative_error"]
)
def test_gates_on_quality_are_told_from_others(path):
    assert quality_of_gate(path, METRICS)
    assert not quality_of_gate("speedup_ci.low", METRICS)
