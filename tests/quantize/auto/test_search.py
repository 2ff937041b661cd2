"""The search for a plan, against all plans there are; costs are a fixed table, losses are measured on a real graph."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onnxport.compare.gates import parse_gate
from onnxport.errors import OutputError
from onnxport.quantize.auto.journal import Journal
from onnxport.quantize.auto.kernel_times import Load, Shape, measure, seconds
from onnxport.quantize.auto.knapsack import frontier, isotonic, point, search
from onnxport.quantize.auto.module_loss import OutputLoss
from onnxport.quantize.auto.search import PlanSearch
from onnxport.quantize.modules import ProductSizes, groups, module_of, plan_of
from onnxport.quantize.plan import scheme
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.apply import quantize
from onnxport.runtime.sessions import Sessions

LAYERS, WIDTH = 6, 32
COSTS = [[5.0, 2.5], [3.0, 1.9], [8.0, 4.1], [2.0, 1.7], [6.0, 2.2], [4.0, 2.8]]  # fp32, int4 by layer


@pytest.fixture(scope="module")
def measured(tools):
    """Every plan of fp32 and int4 on six layers of different scales: the sensitivities of layers, and each plan's own real loss."""
    rng = np.random.default_rng(3)
    nodes, weights, x = [], {}, "x"
    for i in range(LAYERS):
        name = f"stack.layers.{i}.linear.weight"
        weights[name] = (rng.standard_normal((WIDTH, WIDTH)) * (0.02 + 0.05 * i)).astype(np.float32)
        end = "last_hidden_state" if i == LAYERS - 1 else f"stack.layers.{i}/Add"
        nodes += [("MatMul", [x, name], [f"product_{i}"]), ("Tanh", [f"product_{i}"], [f"bent_{i}"]), ("Add", [x, f"bent_{i}"], [end])]
        x = end
    shape = ["batch", "length", WIDTH]
    graphs = {"model": tools.build(nodes, {"x": shape}, {"last_hidden_state": shape}, weights)}
    every = groups(graphs)
    meter = OutputLoss(graphs, [{"x": rng.standard_normal((4, 8, WIDTH)).astype(np.float32)}], Sessions.on("cpu", 1))

    def real(picks):
        if not any(picks):
            return 0.0
        chosen = {group.name: "int4-blocks32" for group, pick in zip(every, picks, strict=True) if pick}
        return meter.loss(quantize(graphs, plan_of(chosen, every))[0])

    plans = {picks: real(picks) for picks in itertools.product((0, 1), repeat=LAYERS)}
    losses = [[0.0, plans[tuple(int(i == j) for j in range(LAYERS))]] for i in range(LAYERS)]
    return plans, losses


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_the_choice_is_within_3_percent_of_the_best_of_all_plans(measured, share):
    plans, losses = measured
    budget = share * max(plans.values())
    asked = []

    def holds(one):
        asked.append(one.picks)
        return plans[one.picks] <= budget

    found = search(COSTS, losses, holds, 24)
    best = min(point(COSTS, losses, picks).cost for picks, loss in plans.items() if loss <= budget)
    chosen = found or point(COSTS, losses, (0,) * LAYERS)
    assert plans[chosen.picks] <= budget
    assert chosen.cost <= 1.03 * best
    assert len(asked) == len(set(asked)) <= 24


def test_the_front_is_that_of_all_plans():
    rng = np.random.default_rng(0)
    costs, losses = rng.random((5, 3)).tolist(), rng.random((5, 3)).tolist()
    every = [point(costs, losses, picks) for picks in itertools.product(range(3), repeat=5)]
    best = [p for p in every if not any(o.cost <= p.cost and o.loss <= p.loss and o.picks != p.picks for o in every)]
    front = frontier(costs, losses)
    assert [p.picks for p in front] == [p.picks for p in sorted(best, key=lambda p: p.cost)]
    np.testing.assert_allclose([(p.cost, p.loss) for p in front], [(p.cost, p.loss) for p in sorted(best, key=lambda p: p.cost)])
    thin = frontier(costs, losses, 8)
    assert len(thin) <= 10
    assert thin[0].picks == front[0].picks


def test_nothing_is_found_where_nothing_faster_holds_or_nothing_is_faster():
    costs, losses = [[1.0, 0.5], [1.0, 0.5]], [[0.0, 1.0], [0.0, 1.0]]
    asked = []
    assert search(costs, losses, lambda one: bool(asked.append(one)), 5) is None
    assert 1 <= len(asked) <= 5
    assert search([[1.0, 2.0]], [[0.0, 0.1]], lambda one: pytest.fail("slower than fp32"), 5) is None


def test_a_plan_that_holds_by_chance_is_evened_out_by_its_neighbours():
    assert isotonic([0, 1, 2, 3], [0.0, 0.3, 0.1, 0.5]) == [0.0, 0.2, 0.2, 0.5]
    assert isotonic([3, 0, 1], [1.0, 2.0, 0.0]) == [1.0, 1.0, 1.0]


def test_modules_are_parts_of_layers():
    assert module_of("transformer.decoder.layers.3.self_attn.in_proj_weight") == "transformer.decoder.layers.3.self_attn"
    assert module_of("decoder.block.0.layer.1.EncDecAttention.q.weight") == "decoder.block.0.layer.1"
    assert module_of("source_embedding.weight") == "source_embedding.weight"
    assert module_of("layers.0.weight") == "layers.0.weight"


def test_a_table_that_no_scheme_changes_is_in_no_group(tools):
    """Two token types are fewer rows than kernels take: measured alone, such a table would be refused."""
    tables = {"words.weight": np.ones((40, 32), np.float32), "types.weight": np.ones((2, 32), np.float32)}
    nodes = [
        ("Gather", ["words.weight", "input_ids"], ["w"]),
        ("Gather", ["types.weight", "token_type_ids"], ["t"]),
        ("Add", ["w", "t"], ["y"]),
    ]
    ids = ["batch", "length"]
    graph = tools.build(nodes, {"input_ids": ("int64", ids), "token_type_ids": ("int64", ids)}, {"y": [*ids, 32]}, tables)
    assert [group.name for group in groups({"encoder": graph})] == ["words.weight"]


def test_times_are_of_every_scheme_and_add_up(tools):
    shape = ["rows", 32]
    weights = {"h.0.a.weight": np.ones((32, 48), np.float32), "h.0.b.weight": np.ones((48, 32), np.float32)}
    graph = tools.build(
        [("MatMul", ["x", "h.0.a.weight"], ["y"]), ("MatMul", ["y", "h.0.b.weight"], ["z"])], {"x": shape}, {"z": shape}, weights
    )
    every = groups({"model": graph})
    assert [(group.name, len(group.uses), group.values) for group in every] == [("h.0.a", 1, 32 * 48), ("h.0.b", 1, 48 * 32)]
    found = measure(Shape(ProductSizes(32, 48, False, True), 2), ["fp32", "int8-rows", "int8-blocks32", "int4-blocks32-asym-hqq"], 4096, 1)
    assert set(found) == {"fp32", "int8-rows", "int8-blocks32", "int4-blocks32-asym"}
    assert min(found.values()) > 0
    times = {"32x48:1": {"fp32": 1.0, "int4-blocks32": 0.25}, "32x48:4": {"fp32": 3.0, "int4-blocks32": 2.0}}
    loads = [Load("model", 1, 10), Load("model", 4, 1), Load("other", 7, 100)]
    assert seconds(every[0], "fp32", loads, times) == pytest.approx(13)
    assert seconds(every[0], "int4-blocks32-gptq", loads, times) == pytest.approx(4.5)


def test_measurements_are_kept_while_the_key_is_the_same(tmp_path: Path):
    folder = tmp_path / "x.search"
    assert Journal(folder, "a").get("plans", "one", lambda: {"bleu": 3}) == {"bleu": 3}
    assert Journal(folder, "a").get("plans", "one", lambda: pytest.fail("known")) == {"bleu": 3}
    assert len(Journal(folder, "b")) == 0
    (folder / "measured.json").write_text("{")
    journal = Journal(folder, "a")
    assert journal.get("plans", "one", lambda: 4) == 4
    journal.forget()
    assert not folder.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Journal(tmp_path / "file", "a").get("plans", "one", lambda: 4)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("fp32", "fp32"),
        ("int8-static-entropy-tensor", "int8-static-tensor"),
        ("int4-blocks64-asym-hqq", "int4-blocks64-asym"),
        ("int8-rows-reduced", "int8-rows-reduced"),
    ],
)
def test_schemes_that_differ_in_numbers_alone_are_timed_once(name, kernel):
    assert scheme(name).kernel == scheme(kernel).name == kernel


def test_a_plan_is_held_to_the_bounds_of_what_was_measured():
    found = object.__new__(PlanSearch)
    found.gate, found.options = parse_gate("agreement>=0.5"), SimpleNamespace(bounds=PRECISIONS["auto"].bounds)
    on_text = {"agreement": 0.9, "relative_error": 0.9, "kl": 0.05, "top1_agreement": 0.9, "perplexity_change": 0.01}
    assert found._passes(on_text) and not found._passes(on_text | {"kl": 0.2}) and not found._passes(on_text | {"agreement": 0.4})
    assert found._passes({"agreement": 0.9, "relative_error": 0.29}) and not found._passes({"agreement": 0.9, "relative_error": 0.31})
    assert not found._passes({"agreement": 0.9})
