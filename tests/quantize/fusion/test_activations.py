"""GELU that is written out becomes a kernel, whatever its spelling, with the same answers; what only looks like it stays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxport.quantize.fusion import fuse

CONSTANTS = {
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "half": np.float32(0.5),
    "root": np.float32(2**0.5),
    "by_root": np.float32(0.5**0.5),
    "tanh": np.float32((2 / np.pi) ** 0.5),
    "cube": np.float32(0.044715),
}
DIVIDED = [("Div", ["x", "root"], ["inner"])]
MULTIPLIED = [("Mul", ["by_root", "x"], ["inner"])]
ERF = [("Erf", ["inner"], ["gate"]), ("Add", ["gate", "one"], ["open"])]
POWER = [
    ("Pow", ["x", "three"], ["x3"]),
    ("Mul", ["cube", "x3"], ["more"]),
    ("Add", ["x", "more"], ["sum"]),
    ("Mul", ["sum", "tanh"], ["inner"]),
]
PRODUCTS = [
    ("Mul", ["x", "x"], ["x2"]),
    ("Mul", ["x2", "x"], ["x3"]),
    ("Mul", ["x3", "cube"], ["more"]),
    ("Add", ["more", "x"], ["sum"]),
    ("Mul", ["tanh", "sum"], ["inner"]),
]
FACTORED = [  # x * (1 + 0.044715 x * x)
    ("Mul", ["x", "tanh"], ["first"]),
    ("Mul", ["x", "cube"], ["second"]),
    ("Mul", ["second", "x"], ["third"]),
    ("Add", ["third", "one"], ["fourth"]),
    ("Mul", ["first", "fourth"], ["inner"]),
]
TANH = [("Tanh", ["inner"], ["gate"]), ("Add", ["one", "gate"], ["open"])]
ENDS = {
    "half last": [("Mul", ["x", "open"], ["both"]), ("Mul", ["both", "half"], ["y"])],
    "half of x": [("Mul", ["x", "half"], ["less"]), ("Mul", ["less", "open"], ["y"])],
    "half of the gate": [("Mul", ["half", "open"], ["less"]), ("Mul", ["x", "less"], ["y"])],
    "divided": [("Mul", ["open", "x"], ["both"]), ("Div", ["both", "two"], ["y"])],
}
SIZES = {"x": ["batch", 6]}


def checked(tools, session, nodes, rule: str, kernel: str) -> None:
    model = tools.build(nodes, SIZES, {"y": ["batch", 6]}, CONSTANTS)
    fused, counts = fuse(model, "model", "cpu")
    assert counts == {rule: 1} and [node.op_type for node in fused.graph] == [kernel]
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32) * 3
    answers = [tools.run(session(one), {"x": x})["y"] for one in (model, fused)]
    np.testing.assert_allclose(*answers, atol=2e-6)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("begin", [DIVIDED, MULTIPLIED], ids=["divided", "multiplied"])
def test_by_erf(tools, session, begin, end) -> None:
    checked(tools, session, begin + ERF + ENDS[end], "gelu", "Gelu")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("begin", [POWER, PRODUCTS, FACTORED], ids=["power", "products", "factored"])
def test_by_tanh(tools, session, begin, end) -> None:
    checked(tools, session, begin + TANH + ENDS[end], "tanh_gelu", "FastGelu")


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([("Mul", ["x", "half"], ["inner"]), *ERF, *ENDS["half last"]], id="another factor below erf"),
        pytest.param([*DIVIDED, *ERF, ("Mul", ["open", "half"], ["less"]), ("Mul", ["less", "z"], ["y"])], id="another value is gated"),
        pytest.param([*DIVIDED, *ERF, ("Mul", ["x", "open"], ["y"])], id="no half"),
        pytest.param([*POWER[:1], ("Mul", ["half", "x3"], ["more"]), *POWER[2:], *TANH, *ENDS["half last"]], id="another cube"),
        pytest.param([*DIVIDED, ("Erf", ["inner"], ["gate"]), ("Add", ["gate", "two"], ["open"]), *ENDS["half last"]], id="two is added"),
        pytest.param(
            [*DIVIDED, *ERF, *ENDS["half of the gate"][:1], ("Mul", ["x", "less"], ["w"]), ("Add", ["w", "open"], ["y"])], id="read twice"
        ),
    ],
)
def test_what_is_no_gelu_stays(tools, nodes) -> None:
    _, counts = fuse(tools.build(nodes, SIZES | {"z": ["batch", 6]}, {"y": ["batch", 6]}, CONSTANTS), "model", "cpu")
    assert not counts
