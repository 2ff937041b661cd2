"""A search gives a module one scale behind its norm, and rows to what stands behind none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from onnxport.quantize.auto import measurements
from onnxport.quantize.auto.kernel_times import Load, Shape, seconds
from onnxport.quantize.modules import Group, ProductSizes, Use
from onnxport.quantize.safeguards.static_norms import STATIC

SIZES = ProductSizes(64, 64, False, True)


def test_a_module_with_one_scale_behind_its_norm_has_rows_for_the_rest() -> None:
    found = object.__new__(measurements.Measurements)
    found.groups, found.after_norms, found.decodes = [Group("layer.0", {"query", "out"}, [Use("encoder", SIZES)])], {"query"}, False
    found.options = [("fp32", "int8-rows", STATIC)]
    assert found.plan((2,)).entries == {"query": STATIC, "out": "int8-rows"}
    assert found.plan((1,)).entries == {"query": "int8-rows", "out": "int8-rows"}
    found.bundle = SimpleNamespace(variants={"int8": SimpleNamespace(plan=found.plan((2,)).entries)})
    assert found.variants() == {"int8": (2,)}


def test_products_that_no_norm_precedes_are_priced_by_rows() -> None:
    group = Group("layer.0", {"query", "out"}, [Use("encoder", SIZES, after_norm=True), Use("encoder", SIZES)])
    times = {Shape(SIZES, 8).key: {"fp32": 4.0, "int8-rows": 2.0, "int8-static": 1.0}}
    priced = {name: seconds(group, name, [Load("encoder", 8, 1)], times) for name in ("fp32", "int8-rows", STATIC)}
    assert priced == pytest.approx({"fp32": 8, "int8-rows": 4, STATIC: 3})
