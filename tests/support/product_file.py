"""A graph file of one product."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_product(path: Path) -> Path:
    """A file of one product, whose weights take 40 kB: no trace comes before it is written."""
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 100]) for name in "xy"]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32), "weight")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "product", numbers[:1], numbers[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path
