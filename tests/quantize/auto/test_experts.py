"""A search sees mixtures of experts: as groups of their own, with schemes, losses and times of their kernel."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from onnxport.quantize.auto import measurements
from onnxport.quantize.auto.decoding import KindLosses, kind_of
from onnxport.quantize.auto.kernel_times import Load, Shape, measure, seconds, shapes_of
from onnxport.quantize.auto.measurements import ANSWERING, DECODING, GENERATING
from onnxport.quantize.modules import Group, MixtureSizes, groups, plan_of
from onnxport.quantize.plan import Plan
from onnxport.quantize.recipe import Solved
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks.blockwise import Weights
from onnxport.quantize.schemes.channel_scales import ChannelScales
from support import expert_layers
from support.expert_layers import ATTRIBUTES, EXPERTS, HIDDEN, INNER, TOP

SIZES = MixtureSizes(EXPERTS, HIDDEN, 2 * INNER, INNER, False, tuple(sorted(ATTRIBUTES.items())))
BOTH = {"gate_up_proj", "down_proj"}


def of_mixtures(every: list[Group]) -> list[Group]:
    return [group for group in every if group.widths]


def test_a_mixture_is_a_group_of_its_own_beside_its_router() -> None:
    model = expert_layers.decoder(2)
    every = groups({"decoder": model})
    found = of_mixtures(every)
    assert [group.name for group in found] == ["layers.0.experts", "layers.1.experts"]
    assert found[0].parameters == {f"layers.0.experts.{name}" for name in BOTH}
    assert found[0].values == 3 * EXPERTS * HIDDEN * INNER and found[0].widths == {HIDDEN, INNER}
    assert [(use.role, use.sizes) for use in found[0].uses] == [("decoder", SIZES)]
    assert "layers.0.router.weight" in {parameter for group in every if not group.widths for parameter in group.parameters}
    kinds = groups({"decoder": expert_layers.decoder(10)}, kind_of(expert_layers.decoder(10)))
    assert [(group.name, len(group.parameters)) for group in of_mixtures(kinds)] == [(f"layers.*.experts {i}", 4) for i in range(5)]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (DECODING, ["int8-blocks64", "int8-blocks32", "int4-blocks32-asym", "int4-blocks64-asym"]),
        (GENERATING, ["int8-blocks64", "int8-blocks32", "int4-blocks64-asym-hqq", "int4-blocks32-asym-hqq"]),
        (ANSWERING, ["int8-blocks64"]),
    ],
)
def test_options_are_what_the_kernel_has(names: tuple[str, ...], options: list[str]) -> None:
    """Each once; a plan that gives it to the group is carried out as it stands."""
    graphs = {"decoder": expert_layers.decoder(1)}
    (group,) = of_mixtures(groups(graphs))
    assert list(measurements._options(names, group)) == options
    for option in options:
        became = quantize(graphs, plan_of({group.name: option}, [group]))[1]
        assert {became[parameter] for parameter in group.parameters} == {option}
    assert measurements._sized(names[0], group) == options[0]


def test_a_mixture_that_no_kernel_takes_is_in_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_layers, "INNER", 40)
    assert not of_mixtures(groups({"decoder": expert_layers.decoder(1)}))


def test_losses_are_those_of_each_mixture_alone() -> None:
    decoder, feeds = expert_layers.decoder(5, spiky=1), expert_layers.feeds()
    every = of_mixtures(groups({"decoder": decoder}, kind_of(decoder)))
    solved = Solved(ChannelScales(decoder, feeds), Weights())
    with KindLosses(decoder, feeds, solved) as losses:
        four = [losses.loss(group, "int4-blocks64") for group in every]
        eight = [losses.loss(group, "int8-blocks32") for group in every]
    assert int(np.argmax(four)) == 1 and four[1] > 10 * max(four[2:])
    assert 0 <= max(eight) < four[1] / 4


def test_times_are_of_the_kernel_with_the_chosen_experts() -> None:
    assert [Shape(SIZES, rows).experts for rows in (1, 2, 3)] == [TOP, EXPERTS, EXPERTS]
    assert Shape(SIZES, 1).values == TOP * 3 * HIDDEN * INNER
    (group,) = of_mixtures(groups({"decoder": expert_layers.decoder(1)}))
    loads = [Load("decoder", 7, 1, head=HIDDEN, head_rows=1), Load("decoder", 1, 20)]
    found = [(shape, count) for _, shape, count in shapes_of(group, loads)]
    assert found == [(Shape(SIZES, 7), 1), (Shape(SIZES, 1), 20)], "a mixture is no projection to a vocabulary"
    times = {shape.key: {"fp32": 1.0, "int4-blocks64-asym": 0.25} for shape, _ in found}
    assert len(times) == 2
    assert seconds(group, "fp32", loads, times) == pytest.approx(21)
    assert seconds(group, "int4-blocks64-asym-hqq", loads, times) == pytest.approx(21 / 4)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("values", [1, 10**6])  # one kernel, whose weights lie in a file, or copies
def test_every_scheme_is_timed(biased: bool, values: int) -> None:
    sizes = MixtureSizes(EXPERTS, HIDDEN, 2 * INNER, INNER, biased, SIZES.attributes)
    found = measure(Shape(sizes, 3), ["fp32", "int8-blocks64", "int4-blocks32-asym", "int4-blocks32-asym-hqq"], values, 1)
    assert set(found) == {"fp32", "int8-blocks64", "int4-blocks32-asym"} and min(found.values()) > 0


def test_a_bundles_own_plan_is_a_pick() -> None:
    found = object.__new__(measurements.Measurements)
    found.groups, found.after_norms = of_mixtures(groups({"decoder": expert_layers.decoder(2)})), set()
    found.options = [("fp32", *measurements._options(DECODING, group)) for group in found.groups]
    became = quantize({"decoder": expert_layers.decoder(2)}, Plan({"*": "fp32", "*experts*": "int4-blocks32-asym-rotated-gptq"}))[1]
    found.bundle = SimpleNamespace(variants={"int4": SimpleNamespace(plan=became)})
    assert found.variants() == {"int4": (3, 3)}
