"""How many weights of 4 bits are made nearer: a fixed share, and more where llama.cpp's Q4_K_M has bytes left."""

from __future__ import annotations

import numpy as np
import pytest

from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards.sensitive_weights import NEARLY, Measure, _left_by_q4_k_m, _spend
from onnxport.quantize.schemes.linear import lookups
from onnxport.quantize.schemes.mixtures import products

FOUR, TABLE = "int4-blocks32-asym", "int8-blocks"


def left(tools, width: int, inner: int, others: int = 0) -> float:
    """Of a decoder with a tied table of 400 tokens and one layer. others: bytes of what is no weight."""
    shapes = {"table": (400, width), "up": (width, inner), "down": (inner, width)}
    weights = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    nodes = [
        ("Gather", ["table.weight", "ids"], ["h"]),
        ("MatMul", ["h", "up.weight"], ["u"]),
        ("MatMul", ["u", "down.weight"], ["d"]),
        ("Gemm", ["d", "table.weight"], ["logits"], {"transB": 1}),
    ]
    graph = tools.build(nodes, {"ids": ("int64", ["n"])}, {"logits": ["n", 400]}, weights).graph
    found = list(products(graph))
    size = others + 4 * sum(map(np.size, weights.values()))
    return _left_by_q4_k_m(found, list(lookups(graph)), Plan({"*": FOUR, "table.weight": TABLE}), size)


def test_what_its_quantizer_spends_on_rows_that_256_does_not_divide_is_left(tools) -> None:
    width, inner = 320, 1280
    share = left(tools, width, inner)
    table, up, down = 400 * width, width * inner, inner * width
    theirs = table * 8.5 + up * 5.5 + down * (4.5 + 6.5625) / 2
    ours = table * (8 + 16 / 64) + (up + down) * (4 + 20 / 32)
    more = up * (8 + 16 / 64 - 4 - 20 / 32) + down * (8 + 16 / 128 - 4 - 20 / 32)
    assert ours + share * more == pytest.approx(NEARLY * theirs)
    assert share > 0.2
    assert left(tools, width, inner, others=1000) == pytest.approx(share - 8 * 1000 / more)


def test_nothing_is_left_where_256_divides_all(tools) -> None:
    assert left(tools, 512, 1024) == 0


@pytest.mark.parametrize(
    ("most", "off"),
    [(0.0, [0, 1]), (0.35, [0, 1]), (0.5, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_groups_in_their_order_then_those_that_fit(most: float, off: list[int]) -> None:
    on, sizes = np.ones(5, bool), np.array([10, 20, 50, 15, 0])
    _spend(on, np.array([0, 1, 2, 3, 4]), sizes, Measure(str, lambda *_: "", lambda *_: 0.0, spent=0.2, most=most))
    assert np.flatnonzero(~on).tolist() == off
