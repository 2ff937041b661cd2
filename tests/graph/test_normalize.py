"""Shapes of a graph with kernels of ONNX Runtime in it, which ONNX's own inference does not know."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph.edit import dims
from onnxport.graph.normalize import fold_constants, name_shapes

K, N = 32, 24
MICROSOFT = "com.microsoft"


def test_shapes_behind_kernels_of_onnxruntime():
    blocks = {"q": np.zeros((N, K // 16, 8), np.uint8), "scale": np.ones((N, K // 16), np.float32)}
    vectors = {"gamma": np.ones(N, np.float32), "beta": np.ones(N, np.float32), "split": np.array([0, 0, 4, 6])}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "q", "scale"], ["a"], domain=MICROSOFT, K=K, N=N, bits=4, block_size=16),
        helper.make_node("BiasGelu", ["a", "beta"], ["b"], domain=MICROSOFT),
        helper.make_node("SkipLayerNormalization", ["a", "b", "gamma", "beta"], ["c", "", "", "sum"], domain=MICROSOFT),
        helper.make_node("Reshape", ["c", "split"], ["d"]),
        helper.make_node("Add", ["sum", "beta"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("d", "y")],
        [numpy_helper.from_array(array, name) for name, array in (blocks | vectors).items()],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = ir.from_proto(onnx.load_from_string(helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()))
    name_shapes(model)
    found = {str(value.name): dims(value) for node in model.graph for value in node.outputs if value.name}
    assert {name: found[name] for name in "abc"} == dict.fromkeys("abc", ("batch", "length", N))
    assert found["d"] == ("batch", "length", 4, 6)
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "BiasGelu", "SkipLayerNormalization", "Reshape", "Add"]


def test_a_scalar_that_is_folded_stays_one():
    nodes = [helper.make_node("Squeeze", ["one"], ["scalar"]), helper.make_node("Mul", ["x", "scalar"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([3], np.float32), "one")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    assert fold_constants(model.graph) == 1
    (node,) = model.graph
    assert node.inputs[1].const_value.numpy().shape == ()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
