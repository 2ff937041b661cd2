"""Recipes of language models: scaled channels, 8 bits for the vocabulary, nearer schemes for what their answers are sensitive about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph.logits_positions import every_position
from onnxport.graph.session import answers
from onnxport.quantize.calibration_inputs import GoldenText, golden_texts
from onnxport.quantize.plan import Plan
from onnxport.quantize.precisions import PRECISIONS, Bounds
from onnxport.quantize.recipe import Recipe, make_graphs
from onnxport.quantize.safeguards.sensitive_weights import of_a_decoder
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks.blockwise import Weights
from onnxport.runtime.bundle.kept import Kept

VOCABULARY, WIDTH, LAYERS = 96, 128, 6
ROWS = Plan({"layers": "int8-rows"})


def made_of_layers(spike: float, tied: bool = True) -> ir.Model:
    """Layers x + W x over an embedding that is tied to the logits; what the second reads has channels, other ones for each token, that are
    `spike` times as large as the rest. Not tied: a projection of its own gives the logits."""
    random = np.random.default_rng(0)
    weights = {f"layers.{i}.mlp.weight": (random.standard_normal((WIDTH, WIDTH)) / 200).astype(np.float32) for i in range(LAYERS)}
    spikes = np.where(random.random((VOCABULARY, WIDTH)) < 1 / WIDTH, spike, 1).astype(np.float32)  # other channels for each token
    table = (random.standard_normal((VOCABULARY, WIDTH)) / 6).astype(np.float32)
    head = "embedding.weight" if tied else "head.weight"
    constants = weights | {"embedding.weight": table, "spikes": spikes} | ({} if tied else {head: table[:, ::-1].copy()})
    nodes = [
        helper.make_node("Gather", ["embedding.weight", "input_ids"], ["x0"], axis=0),
        helper.make_node("Gather", ["spikes", "input_ids"], ["spike"], axis=0),
    ]
    for i in range(LAYERS):
        read = f"x{i}"
        if i == 1:
            nodes.append(helper.make_node("Mul", [read, "spike"], ["spiky"]))
            read = "spiky"
        nodes += [
            helper.make_node("MatMul", [read, f"layers.{i}.mlp.weight"], [f"m{i}"]),
            helper.make_node("Add", [f"x{i}", f"m{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", ["logits_index", "one"], ["places"]),
        helper.make_node("GatherND", [f"x{LAYERS}", "places"], ["last"], batch_dims=1),
        helper.make_node("Gemm", ["last", head], ["logits"], transB=1),
    ]
    constants["one"] = np.array([1], np.int64)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    index = helper.make_tensor_value_info("logits_index", TensorProto.INT64, ["batch"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY])
    graph = helper.make_graph(nodes, "g", [ids, index], [logits], [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    return made_of_layers(spike=300)


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    rows = [random.integers(0, VOCABULARY, (1, length)) for length in (20, 31, 12, 25)]
    return [{"input_ids": ids, "logits_index": np.array([ids.shape[1] - 1])} for ids in rows]


@pytest.fixture(scope="module")
def texts(decoder: ir.Model, feeds: list[dict[str, np.ndarray]]) -> list[GoldenText]:
    return judged(decoder, feeds)


def judged(decoder: ir.Model, feeds: list[dict[str, np.ndarray]]) -> list[GoldenText]:
    """The feeds with what the decoder in float32 answers, all of it."""
    found = answers(every_position(decoder), feeds)
    return [GoldenText(feed, Kept.of(one["logits"], np.zeros(len(one["logits"]), int))) for feed, one in zip(feeds, found, strict=True)]


def bounds(kl: float) -> Bounds:
    return Bounds(0.1, kl=kl, top1_agreement=0.0, perplexity_change=1.0, cosine=0.9, label_agreement=0.9)


def divergence(decoder: ir.Model, feeds: list[dict[str, np.ndarray]], plan: Plan) -> float:
    found = []
    for model in (decoder, quantize({"decoder": decoder}, plan)[0]["decoder"]):
        logits = np.concatenate([one["logits"] for one in answers(every_position(model), feeds)]).astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        found.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    return float((np.exp(found[0]) * (found[0] - found[1])).sum(1).mean())


def test_every_position_has_the_logits_that_one_position_has(decoder: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    whole = every_position(decoder)
    assert [value.name for value in whole.graph.inputs] == ["input_ids"]
    for place in (0, 7, 19):
        one = answers(decoder, [feeds[0] | {"logits_index": np.array([place])}])[0]["logits"]
        np.testing.assert_allclose(answers(whole, feeds[:1])[0]["logits"][place], one[0], rtol=1e-5, atol=1e-4)


def test_what_the_answers_are_sensitive_about_gets_a_nearer_scheme(
    decoder: ir.Model, feeds: list[dict[str, np.ndarray]], texts: list[GoldenText]
) -> None:
    plain = divergence(decoder, feeds, ROWS)
    kept = of_a_decoder(decoder, texts, ROWS, bounds(plain / 2), 1.0, Weights())
    assert kept.items() >= {"layers.0.mlp.weight": "int8-blocks32", "layers.1.mlp.weight": "int8-blocks32"}.items()  # a fifth of the layers
    assert "layers.4.mlp.weight" not in kept and "layers.5.mlp.weight" not in kept
    assert divergence(decoder, feeds, Plan(ROWS.schemes | kept)) <= plain / 2


def test_nothing_is_changed_within_the_bounds(decoder: ir.Model, feeds: list[dict[str, np.ndarray]], texts: list[GoldenText]) -> None:
    assert of_a_decoder(decoder, texts, ROWS, bounds(1e9), 1.0, Weights()) == {}


def test_other_first_choices_count_too(feeds: list[dict[str, np.ndarray]]) -> None:
    decoder, coarse = made_of_layers(spike=10_000), Plan({"layers": "int4-blocks128"})
    strict = Bounds(0.1, kl=1e9, top1_agreement=0.9999, perplexity_change=1.0, cosine=0.9, label_agreement=0.9)
    assert of_a_decoder(decoder, judged(decoder, feeds), coarse, strict, 1.0, Weights())


def written(folder: Path, decoder: ir.Model, feeds: list[dict[str, np.ndarray]]) -> Path:
    """The feeds as golden texts of a decoder, each judged on all but its first token."""
    ids = np.zeros((len(feeds), 40), np.int64)
    lengths = np.array([feed["input_ids"].size for feed in feeds])
    for row, feed in zip(ids, feeds, strict=True):
        row[: feed["input_ids"].size] = feed["input_ids"][0]
    kept = [
        Kept.of(one["logits"][:-1], feed["input_ids"][0, 1:])
        for feed, one in zip(feeds, answers(every_position(decoder), feeds), strict=True)
    ]
    arrays = {"input_ids": ids, "lengths": lengths, "first": np.ones_like(lengths), "scored": lengths - 1} | Kept.joined(kept).arrays()
    path = folder / "golden.npz"
    np.savez(path, **{f"text/{name}": array for name, array in arrays.items()})
    return path


@pytest.fixture
def goldens(tmp_path: Path, decoder: ir.Model, feeds: list[dict[str, np.ndarray]]) -> Path:
    return written(tmp_path, decoder, feeds)


def bytes_of(model: ir.Model) -> dict[str, bytes]:
    return {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items() if value.const_value is not None}


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_plan_makes_the_same_graphs_again(decoder: ir.Model, feeds: list[dict[str, np.ndarray]], goldens: Path, precision: str) -> None:
    made = make_graphs(Recipe(precision, texts=lambda: {"decoder": feeds}), {"decoder": decoder}, goldens)
    again = make_graphs(Recipe(precision, made.plan, texts=lambda: {"decoder": feeds}), {"decoder": decoder}, goldens)
    assert again.plan.schemes == made.plan.schemes
    assert bytes_of(again.models["decoder"]) == bytes_of(made.models["decoder"])


def test_four_bits_leave_eight_to_the_vocabulary(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    even = {"decoder": made_of_layers(spike=1)}
    goldens = written(tmp_path, even["decoder"], feeds)
    made = make_graphs(Recipe("int4", texts=lambda: {"decoder": feeds}), even, goldens)
    assert made.plan.schemes["embedding.weight"] == "int8-blocks128"
    assert made.plan.schemes["layers.3.mlp.weight"] == "int4-blocks32-asym-rotated-gptq"
    assert PRECISIONS["int4"].on_texts is not None


@pytest.mark.parametrize(("noise", "scheme"), [(0.001, "int4-blocks32-asym"), (1.0, "int8-blocks128")])
def test_a_table_that_nothing_multiplies_by_has_four_bits_where_little_is_lost(
    feeds: list[dict[str, np.ndarray]], tmp_path: Path, noise: float, scheme: str
) -> None:
    """noise: on values that lie on a grid of 4 bits."""
    made = {"decoder": made_of_layers(spike=1, tied=False)}
    table = made["decoder"].graph.initializers["embedding.weight"]
    random = np.random.default_rng(5)
    values = random.integers(0, 16, (VOCABULARY, WIDTH)).astype(np.float32)
    values[:, ::32], values[:, 1::32] = 0, 15
    values = values / 32 - 0.25 + noise * random.standard_normal(values.shape).astype(np.float32)
    table.const_value = ir.tensor(values.astype(np.float32), name=table.name)
    goldens = written(tmp_path, made["decoder"], feeds)
    plan = make_graphs(Recipe("int4", texts=lambda: {"decoder": feeds}), made, goldens).plan
    assert plan.schemes["embedding.weight"] == scheme and plan.schemes["head.weight"] == "int8-blocks128"


def test_each_golden_text_is_read_as_far_as_it_is_judged(decoder: ir.Model, goldens: Path) -> None:
    found = golden_texts(goldens, decoder)
    assert [(text.feed["input_ids"].shape, len(text.kept)) for text in found] == [((1, n), n) for n in (19, 30, 11, 24)]


def test_a_checkpoints_own_codes_are_carried_beside_others(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    """One weight of six holds codes of 4 bits: it keeps them, and what reads it is not scaled."""
    decoder = made_of_layers(spike=1)
    weight = decoder.graph.initializers["layers.2.mlp.weight"]
    codes = np.random.default_rng(3).integers(-8, 8, (WIDTH, WIDTH))
    codes[::32] = -8  # every block reaches as far as it can
    weight.const_value = ir.tensor((codes * np.float32(0.004)).astype(np.float32), name=weight.name)
    made = make_graphs(Recipe("int4", texts=lambda: {"decoder": feeds}), {"decoder": decoder}, written(tmp_path, decoder, feeds))
    assert made.plan.schemes["layers.2.mlp.weight"].startswith("int4-blocks")
    assert "gptq" not in made.plan.schemes["layers.2.mlp.weight"]
    others = {made.plan.schemes[f"layers.{layer}.mlp.weight"] for layer in (0, 1, 3, 4, 5)}
    assert others == {"int4-blocks32-asym-rotated-gptq", "int8-blocks128"}, "a fifth at least has 8 bits"
