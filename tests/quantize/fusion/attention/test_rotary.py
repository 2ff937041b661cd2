"""Rotary positions that are written out become RotaryEmbedding: by halves and by pairs, of whole heads and of their beginnings."""

from types import SimpleNamespace

import numpy as np
import pytest

from onnxport.graph.normalize import name_shapes
from onnxport.quantize.fusion.attention.rotary import PartialRotary, Rotary
from onnxport.quantize.fusion.rule import apply

HEADS, SIZE, TURNED = 3, 12, 8
SHAPES = ((1, 1), (2, 5), (3, 2))  # batch, length
LAST = 2**63 - 1


def spread(name, form):
    """Nodes from angles [batch, length, n] to a table of them over heads, [batch, 1, length, 2 n], as transformers' classes write it."""
    laid_out, twice = f"{name}/laid_out", f"{name}/twice"
    if form == "halves":
        return [(name.capitalize(), ["angles"], [laid_out]), ("Concat", [laid_out, laid_out], [twice], {"axis": -1}),
                ("Unsqueeze", [twice, "one"], [name])]  # fmt: skip
    repeat = [("Unsqueeze", [laid_out, "minus_one"], [f"{name}/column"]), ("Expand", [f"{name}/column", "twice"], [f"{name}/both"])]
    if form == "pairs":
        laid_out_too = [("Reshape", [f"{name}/both", "merged_3"], [f"{name}/angles"]), (name.capitalize(), [f"{name}/angles"], [twice])]
        return [("Identity", ["angles"], [laid_out]), *repeat, *laid_out_too, ("Unsqueeze", [twice, "one"], [name])]
    over_heads = [(name.capitalize(), ["angles"], [twice]), ("Unsqueeze", [twice, "one"], [laid_out])]  # "pairs over heads"
    return [*over_heads, *repeat, ("Reshape", [f"{name}/both", "merged_4"], [name])]


def written_out(tools, form, turned=TURNED, swapped=False, tables=None, joined=("front", "rest")):
    """x [batch, heads, length, size] and angles → y: the first `turned` elements of each head turned."""
    size, tables = SIZE, tables or form
    half, part = turned // 2, "x" if turned == size else "begin"
    cut = [("Slice", ["x", "zero", "turned", "three"], ["begin"]), ("Slice", ["x", "turned", "last", "three"], ["rest"])]
    nodes = [*spread("cos", tables), *spread("sin", tables), *([] if turned == size else cut)]
    if form == "halves":
        nodes += [("Slice", [part, "zero", "half", "three"], ["a"]), ("Slice", [part, "half", "last", "three"], ["b"]),
                  ("Neg", ["b"], ["nb"]), ("Concat", ["a", "nb"] if swapped else ["nb", "a"], ["exchanged"], {"axis": -1})]  # fmt: skip
    else:
        nodes += [("Slice", [part, "zero", "last", "three", "two"], ["a"]), ("Slice", [part, "one", "last", "three", "two"], ["b"]),
                  ("Neg", ["b"], ["nb"]), ("Unsqueeze", ["nb", "minus_one"], ["nb1"]), ("Unsqueeze", ["a", "minus_one"], ["a1"]),
                  ("Concat", ["a1", "nb1"] if swapped else ["nb1", "a1"], ["beside"], {"axis": -1}),
                  ("Reshape", ["beside", "heads"], ["exchanged"])]  # fmt: skip
    answer = "y" if turned == size else "front"
    nodes += [("Mul", [part, "cos"], ["plain"]), ("Mul", ["exchanged", "sin"], ["side"]), ("Add", ["plain", "side"], [answer])]
    nodes += [] if turned == size else [("Concat", [*joined], ["y"], {"axis": -1})]
    constants = {"zero": [0], "one": [1], "two": [2], "three": [3], "minus_one": [-1], "half": [half], "turned": [turned], "last": [LAST]}
    constants |= {"merged_3": [0, 0, turned], "merged_4": [0, 0, 0, turned], "heads": [0, 0, 0, turned]}
    constants |= {"twice": [1, 1, 1, 2] if tables == "pairs" else [1, 1, 1, 1, 2]}
    shape = ["batch", HEADS, "length", size]
    inputs = {"x": shape, "angles": ["batch", "length", half]}
    model = tools.build(nodes, inputs, {"y": shape}, {name: np.array(value) for name, value in constants.items()})
    name_shapes(model)
    return model


def fused(model):
    copy = model.clone()
    outcome = apply(copy.graph, [Rotary(), PartialRotary()])
    copy.graph.sort()
    return SimpleNamespace(model=copy, **vars(outcome))


@pytest.mark.parametrize("turned", [SIZE, TURNED])
@pytest.mark.parametrize("form", ["halves", "pairs", "pairs over heads"])
def test_answers(session, tools, form, turned):
    model = written_out(tools, form, turned=turned)
    made = fused(model)
    assert made.counts == {"rotary": 1} | ({} if turned == SIZE else {"partial_rotary": 1}), made.misses
    (node,) = (node for node in made.model.graph if node.op_type == "RotaryEmbedding")
    assert node.inputs[0].name == "x" and not any(node.op_type in ("Mul", "Neg") for node in made.model.graph)
    assert ("interleaved" in node.attributes) == (form != "halves") and ("rotary_embedding_dim" in node.attributes) == (turned != SIZE)
    plain, ours, rng = session(model), session(made.model), np.random.default_rng(0)
    for batch, length in SHAPES:
        x = rng.standard_normal((batch, HEADS, length, SIZE)).astype(np.float32)
        angles = rng.uniform(-3, 3, (batch, length, turned // 2)).astype(np.float32)
        expected, found = (tools.run(one, {"x": x, "angles": angles})["y"] for one in (plain, ours))
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("form", ["halves", "pairs"])
def test_what_is_turned_the_other_way_stays(tools, form):
    assert fused(written_out(tools, form, swapped=True)).counts == {}


@pytest.mark.parametrize(("form", "tables", "what"), [("pairs", "halves", "neighbours"), ("halves", "pairs", "halves")])
def test_tables_of_another_layout_stay(tools, form, tables, what):
    made = fused(written_out(tools, form, turned=SIZE, tables=tables))
    assert made.counts == {} and f"the {what} of a table are not known to be equal" in made.misses["rotary"][0]


def test_ends_of_heads_that_are_turned_stay_parts(tools):
    made = fused(written_out(tools, "halves", joined=("rest", "front")))
    assert made.counts == {"rotary": 1} and "the first part comes from Slice" in made.misses["partial_rotary"][-1]
