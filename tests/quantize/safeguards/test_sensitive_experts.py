"""Mixtures of experts are protected like products: both weights of one together, by a scheme that their kernel has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.logits_positions import every_position
from onnxport.graph.session import answers, opened
from onnxport.quantize.calibration_inputs import GoldenText
from onnxport.quantize.plan import Plan
from onnxport.quantize.precisions import Bounds
from onnxport.quantize.safeguards.sensitive_weights import (
    ROLE,
    SWITCHES,
    Measure,
    by_rule,
    kinds,
    logits_alone,
    nearer_of,
    of_a_decoder,
    of_an_encoder,
    twins,
)
from onnxport.quantize.schemes.apply import chosen, quantize
from onnxport.quantize.schemes.blocks.blockwise import Weights
from onnxport.quantize.schemes.mixtures import mixtures, products
from onnxport.runtime.bundle.kept import Kept
from support import expert_layers

FOUR = Plan({"layers.*.experts": "int4-blocks32"})
LAYERS, SPIKY = 5, 1
Feeds = list[dict[str, np.ndarray]]


def weights_of(layer: int) -> set[str]:
    return {f"layers.{layer}.experts.gate_up_proj", f"layers.{layer}.experts.down_proj"}


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    return expert_layers.decoder(LAYERS, SPIKY)


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    return expert_layers.feeds()


def test_a_mixture_with_a_third_product_stays_as_it_is() -> None:
    foreign = expert_layers.decoder(2)
    node = next(mixture.node for mixture in mixtures(foreign.graph))
    node.resize_inputs(7)
    node.replace_input_with(6, node.inputs[2])
    assert [mixture.node is node for mixture in mixtures(foreign.graph)] == [False]
    assert {n.op_type for n in quantize({"decoder": foreign}, FOUR)[0]["decoder"].graph if "MoE" in n.op_type} == {"MoE", "QMoE"}


def bounds(kl: float) -> Bounds:
    return Bounds(0.1, kl=kl, top1_agreement=0.0, perplexity_change=1.0, cosine=0.9, label_agreement=0.9)


def logits(model: ir.Model, feeds: Feeds) -> list[np.ndarray]:
    return [found["logits"] for found in answers(every_position(model), feeds)]


def divergence(decoder: ir.Model, feeds: Feeds, plan: Plan) -> float:
    both = []
    for model in (decoder, quantize({"decoder": decoder}, plan)[0]["decoder"]):
        wide = np.concatenate(logits(model, feeds)).astype(np.float64)
        shifted = wide - wide.max(1, keepdims=True)
        both.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    return float((np.exp(both[0]) * (both[0] - both[1])).sum(1).mean())


def judged(decoder: ir.Model, feeds: Feeds) -> list[GoldenText]:
    return [GoldenText(feed, Kept.of(one, np.zeros(len(one), int))) for feed, one in zip(feeds, logits(decoder, feeds), strict=True)]


def test_a_sensitive_mixture_is_made_nearer_as_a_whole(decoder: ir.Model, feeds: Feeds) -> None:
    plain = divergence(decoder, feeds, FOUR)
    kept = of_a_decoder(decoder, judged(decoder, feeds), FOUR, bounds(plain / 2), 1.0, Weights())
    assert kept == dict.fromkeys(weights_of(SPIKY), "int8-blocks"), "a fifth of all weights, and no others"
    protected = Plan(FOUR.schemes | kept)
    assert divergence(decoder, feeds, protected) <= plain / 2
    _, became = quantize({"decoder": decoder}, protected)
    assert {name for name, scheme in became.items() if scheme == "int8-blocks64"} == weights_of(SPIKY)


def test_nothing_helps_but_float(decoder: ir.Model, feeds: Feeds) -> None:
    eight = Plan({"layers.*.experts": "int8-blocks32"})
    kept = of_a_decoder(decoder, judged(decoder, feeds), eight, bounds(1e-12), 1.0, Weights())
    assert set(kept) == set[str]().union(*map(weights_of, range(LAYERS))) and set(kept.values()) == {"fp32"}


def test_an_encoder_keeps_a_sensitive_mixture_in_float(decoder: ir.Model, feeds: Feeds) -> None:
    model = every_position(decoder)
    assert of_an_encoder(model, feeds, FOUR, 1.0) == {}
    assert set(of_an_encoder(model, feeds, FOUR, 0.01)) >= weights_of(SPIKY)


def test_a_switch_chooses_between_both_kernels(decoder: ir.Model, feeds: Feeds) -> None:
    """Each mixture's switch alone gives the answers of the graph in which that mixture alone is quantized."""
    whole = logits_alone(decoder)
    group = kinds([product.name for product in products(whole.graph)])
    measure = Measure(group.__getitem__, lambda *_: "fp32", lambda *_: 0.0)
    both, groups = twins(whole, FOUR, measure, None)
    assert [set(one.nearer) for one in groups.values()] == [weights_of(layer) for layer in range(LAYERS)]
    assert {one.size for one in groups.values()} == {3 * expert_layers.EXPERTS * expert_layers.HIDDEN * expert_layers.INNER}
    assert {one.bits for one in groups.values()} == {4}
    for layer, on in enumerate(np.eye(LAYERS, dtype=bool)):
        with opened({ROLE: both}) as runners:
            found = [one["logits"] for one in runners[ROLE].run({**feed, SWITCHES: on} for feed in feeds)]
        alone = quantize({"decoder": decoder}, Plan({f"layers.{layer}.experts": "int4-blocks32"}))[0]["decoder"]
        for ours, theirs in zip(found, logits(alone, feeds), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "is_", "better"),
    [
        ("int8-rows", "int8-blocks64", "int8-blocks32"),
        ("int8-blocks32", "int8-blocks32", "fp32"),
        ("int4-blocks64-asym-rotated-gptq", "int4-blocks64-asym", "int8-blocks"),
    ],
)
def test_what_is_nearer_is_what_the_kernel_has(decoder: ir.Model, plan: str, is_: str, better: str) -> None:
    mixture = next(mixtures(decoder.graph))
    found = chosen(Plan({"*": plan}), mixture)
    assert (found.name, nearer_of(mixture, found)) == (is_, better)


def test_of_a_large_model_a_rule_tells_which_mixtures_are_protected() -> None:
    model = expert_layers.decoder(16)

    def protected(plan: str) -> dict[str, set[int]]:
        """Schemes, and the layers that have them."""
        found = by_rule(model, Plan({"*experts*": plan}))
        assert set(found) == set[str]().union(*(weights_of(int(name.split(".")[1])) for name in found)), "both weights of each"
        return {scheme: {int(name.split(".")[1]) for name in found if found[name] == scheme} for scheme in set(found.values())}

    assert protected("int4-blocks32-asym") == {"int8-blocks": {0, 1, 14, 15}}
    assert protected("int8-rows") == {"int8-blocks32": {0, 1, 2, 3}}
    assert protected("int8-blocks32") == {}
