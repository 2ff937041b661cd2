"""Reshapes whose targets are computed, as TorchScript's exporter leaves them, get their shapes, and attention behind them its kernel."""

import numpy as np
import pytest

from onnxport.graph.edit import dims
from onnxport.graph.normalize import name_shapes
from onnxport.quantize.fusion import fuse
from onnxport.quantize.fusion.reshaped import name_reshaped

HEADS, SIZE = 4, 8
HIDDEN = HEADS * SIZE
UNIT = {"zero": np.array(0), "one": np.array(1), "open": np.array([-1]), "size": np.array([SIZE]), "first": np.array([0])}


def sizes(of="x"):
    """Nodes that read batch and length of a value, each as [1]."""
    return [("Shape", [of], ["shape"]), ("Gather", ["shape", "zero"], ["b"]), ("Gather", ["shape", "one"], ["t"]),
            ("Unsqueeze", ["b", "first"], ["batch"]), ("Unsqueeze", ["t", "first"], ["length"])]  # fmt: skip


def shapes(model):
    name_reshaped(model)
    return {node.outputs[0].name: dims(node.outputs[0]) for node in model.graph if node.op_type in ("Reshape", "Transpose", "Mul")}


def test_heads_are_what_is_left(tools):
    nodes = [*sizes(), ("Concat", ["batch", "length", "open", "size"], ["target"], {"axis": 0}), ("Reshape", ["x", "target"], ["heads"]),
             ("Transpose", ["heads"], ["front"], {"perm": [0, 2, 1, 3]}), ("Mul", ["front", "scale"], ["y"])]  # fmt: skip
    model = tools.build(nodes, {"x": ["n", "m", HIDDEN]}, {"y": ["n", HEADS, "m", SIZE]}, UNIT | {"scale": np.float32(2)})
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    assert shapes(model) == {"heads": ("n", "m", HEADS, SIZE), "front": ("n", HEADS, "m", SIZE), "y": ("n", HEADS, "m", SIZE)}


def test_heads_of_rows_whose_number_is_not_known(tools):
    nodes = [("Add", ["x", "other"], ["rows"]), *sizes("rows"),  # n and p, m and q: one may be 1
             ("Concat", ["batch", "length", "open", "size"], ["target"], {"axis": 0}), ("Reshape", ["rows", "target"], ["heads"]),
             ("Transpose", ["heads"], ["front"], {"perm": [0, 2, 1, 3]}), ("Mul", ["front", "scale"], ["y"])]  # fmt: skip
    constants = UNIT | {"scale": np.float32(2)}
    model = tools.build(nodes, {"x": ["n", "m", HIDDEN], "other": ["p", "q", HIDDEN]}, {"y": ["k", HEADS, "l", SIZE]}, constants)
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    name_shapes(model)
    found = shapes(model)
    assert [size for size in found["heads"] if isinstance(size, int)] == [HEADS, SIZE] == [found["front"][1], found["front"][3]]
    assert found["heads"][:2] == (found["front"][0], found["front"][2]) and len({*found["heads"]}) == 4


@pytest.mark.parametrize(
    ("entries", "allowzero", "found"),
    [
        (["batch", "length", "open", "size"], 0, ("n", "m", HEADS, SIZE)),
        (["batch", "open", "size"], 0, ("n", None, SIZE)),  # length times heads has no name
        (["first", "length", "open", "size"], 0, ("n", "m", HEADS, SIZE)),  # 0 copies
        (["first", "length", "open", "size"], 1, None),
        (["batch", "double", "open", "size"], 0, None),  # what is reckoned is not known
    ],
)
def test_what_a_target_tells(tools, entries, allowzero, found):
    nodes = [*sizes(), ("Add", ["length", "length"], ["double"]), ("Concat", entries, ["target"], {"axis": 0}),
             ("Reshape", ["x", "target"], ["heads"], {"allowzero": allowzero}), ("Identity", ["heads"], ["y"])]  # fmt: skip
    model = tools.build(nodes, {"x": ["n", "m", HIDDEN]}, {"y": ["a", "b", "c", "d"][: len(entries)]}, UNIT)
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    told = shapes(model)["heads"]
    if found is None or None in found:
        assert told is None or not all(isinstance(size, int) or size in ("n", "m") for size in told)
    else:
        assert told == found


def test_attention_of_heads_that_are_moved_on_the_way(session, tools):
    """Something is added to queries and keys behind their Transpose, as rotary positions are: they do not show their heads themselves."""
    nodes = [*sizes(), ("Concat", ["batch", "length", "open", "size"], ["split"], {"axis": 0}),
             ("Concat", ["batch", "length", "open"], ["merge"], {"axis": 0})]  # fmt: skip
    for part in "qkv":
        nodes += [("MatMul", ["x", f"w{part}"], [part]), ("Reshape", [part, "split"], [f"{part}4"]),
                  ("Transpose", [f"{part}4"], [f"{part}t"], {"perm": [0, 2, 1, 3]})]  # fmt: skip
    nodes += [("Add", ["qt", "moved"], ["qm"]), ("Add", ["kt", "moved"], ["km"]), ("Transpose", ["km"], ["ke"], {"perm": [0, 1, 3, 2]}),
              ("MatMul", ["qm", "ke"], ["scores"]), ("Mul", ["scores", "scale"], ["scaled"]), ("Softmax", ["scaled"], ["p"], {"axis": -1}),
              ("MatMul", ["p", "vt"], ["a"]), ("Transpose", ["a"], ["at"], {"perm": [0, 2, 1, 3]}),
              ("Reshape", ["at", "merge"], ["y"])]  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {f"w{part}": (rng.standard_normal((HIDDEN, HIDDEN)) / 6).astype(np.float32) for part in "qkv"}
    weights |= {"moved": rng.standard_normal((1, 1, 1, SIZE)).astype(np.float32), "scale": np.float32(0.3)}
    model = tools.build(nodes, {"x": ["n", "m", HIDDEN]}, {"y": ["n", "m", HIDDEN]}, UNIT | weights)
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    made, counts = fuse(model, "model", "cpu")
    assert counts["softmax_attention"] == 1
    for batch, length in ((1, 3), (2, 5)):
        x = rng.standard_normal((batch, length, HIDDEN)).astype(np.float32)
        expected, found = (tools.run(session(one), {"x": x})["y"] for one in (model, made))
        np.testing.assert_allclose(found, expected, atol=1e-5)
