"""Files of a variant: shared weights, equal bytes, no traces of where they were made."""

import errno

import numpy as np
import onnx
import pytest

from onnxport.errors import OutputError
from onnxport.graph import store
from onnxport.quantize.fusion import fuse

TABLE = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def graphs(tools):
    """Two graphs that share a table, once under another name and shape."""
    a = tools.build([("Gather", ["table", "ids"], ["y"])], {"ids": ("int64", ["n"])}, {"y": ["n", 32]}, {"table": TABLE})
    b = tools.build([("Add", ["x", "other"], ["y"])], {"x": [8, 8, 32]}, {"y": [8, 8, 32]}, {"other": TABLE.reshape(8, 8, 32)})
    return {"encoder": a, "decoder": b}


def test_identical_tensors_are_stored_once(tools, tmp_path):
    models = graphs(tools)
    assert store.write(models, tmp_path / "new" / "folder") == {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    folder = tmp_path / "new" / "folder"
    assert (folder / "weights.bin").read_bytes() == TABLE.tobytes()
    np.testing.assert_array_equal(tools.run(tools.load(folder / "encoder.onnx"), {"ids": np.array([3, 63])})["y"], TABLE[[3, 63]])
    got = tools.run(tools.load(folder / "decoder.onnx"), {"x": np.ones((8, 8, 32), np.float32)})["y"]
    np.testing.assert_array_equal(got, TABLE.reshape(8, 8, 32) + 1)
    assert models["encoder"].graph.initializers["table"].const_value is not None, "the models given stay whole"


def test_large_tensors_start_on_pages(tools, tmp_path):
    rng = np.random.default_rng(0)
    weights = {"small": rng.standard_normal(100).astype(np.float32), "large": rng.standard_normal((200, 100)).astype(np.float32)}
    model = tools.build([("Add", ["x", "small"], ["a"]), ("Add", ["a", "large"], ["y"])], {"x": ["n", 100]}, {"y": [200, 100]}, weights)
    store.write({"model": model}, tmp_path)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    offsets = {t.name: int(next(e.value for e in t.external_data if e.key == "offset")) for t in proto.graph.initializer}
    assert offsets["large"] % 4096 == 0 and offsets["small"] % 64 == 0


def test_files_of_weights_are_no_larger_than_wanted(tools, tmp_path):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((rows, 100)).astype(np.float32) for name, rows in (("a", 1), ("b", 1), ("c", 9), ("d", 1))}
    nodes = [("Add", ["x", "a"], ["1"]), ("Add", ["1", "b"], ["2"]), ("Add", ["2", "c"], ["3"]), ("Add", ["3", "d"], ["y"])]
    model = tools.build(nodes, {"x": [9, 100]}, {"y": [9, 100]}, weights)
    store.write({"model": model}, tmp_path / "parts", most=1000)
    files = store.weight_files(tmp_path / "parts")
    assert [file.name for file in files] == ["weights.bin", "weights-2.bin", "weights-3.bin"]
    assert [file.stat().st_size for file in files] == [448 + 400, 3600, 400]  # c alone is larger
    x = np.ones((9, 100), np.float32)
    expected = sum(weights.values(), x)
    np.testing.assert_array_equal(tools.run(tools.load(tmp_path / "parts" / "model.onnx"), {"x": x})["y"], expected)
    store.reread({"model": model}, tmp_path / "parts")
    assert all(np.array_equal(model.graph.initializers[name].const_value.numpy(), array) for name, array in weights.items())


def test_same_bytes_anywhere_and_no_traces(standard, tmp_path):
    contents = []
    for name in ("a", "deep/b"):
        store.write({"decoder": fuse(standard, "decoder", "cpu")[0]}, tmp_path / name)
        contents.append([(tmp_path / name / f).read_bytes() for f in ("decoder.onnx", "weights.bin")])
    assert contents[0] == contents[1]
    proto = onnx.load(tmp_path / "a/decoder.onnx", load_external_data=False)
    assert not proto.metadata_props and not proto.graph.metadata_props and not proto.doc_string
    assert not any(n.metadata_props or n.doc_string for n in proto.graph.node)
    assert b"stack_trace" not in contents[0][0] and b".py" not in contents[0][0] and b"pkg.torch" not in contents[0][0]


def test_standard_graphs_pass_the_checker(standard, tmp_path):
    store.write({"decoder": fuse(standard, "decoder", "any")[0]}, tmp_path)
    onnx.checker.check_model(str(tmp_path / "decoder.onnx"))


def test_a_folder_that_cannot_be_written(tools, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        store.write(graphs(tools), tmp_path / "file" / "variant")


def test_a_full_disk_leaves_nothing_behind(tools, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        store.write(graphs(tools), tmp_path / "v")
    assert list((tmp_path / "v").iterdir()) == []
