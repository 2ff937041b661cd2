"""Files of weights may be cut short or overwritten under a loaded model: it answers as before."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxport.errors import BundleError
from onnxport.runtime import sessions
from onnxport.runtime.memory import mappings
from onnxport.runtime.sessions import Sessions

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files stay mapped elsewhere")

# A process of its own, since it would end with SIGBUS: a table that stays as it is in the file, and a product whose weight does not.
CODE = """
import os, pathlib, sys
import numpy as np
from onnxport.runtime.sessions import Sessions
path = pathlib.Path(sys.argv[1])
sessions = [Sessions.on(threads=1).open(path) for _ in range(2)]
feeds = {"ids": np.arange(0, 3000, 7)}
before = [session.run(None, feeds)[0] for session in sessions]
assert not any(name in pathlib.Path("/proc/self/maps").read_text() for name in ("weights.bin", "/blob"))
os.truncate(path.parent / "weights.bin", 0)
for session, expected in zip(sessions, before):
    assert (session.run(None, feeds)[0] == expected).all()
del sessions, session
print(float(before[0].sum()))
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"table": rng.standard_normal((3000, 64)), "weight": rng.standard_normal((64, 32)), "bias": rng.standard_normal(32)}
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    folder = tmp_path / "a folder\nwith a line end"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "model.onnx"


@pytest.mark.parametrize("linked", [False, True])
def test_weights_that_are_cut_short_change_nothing(linked: bool, graph: Path) -> None:
    expected = float(Sessions.on(threads=1).open(graph).run(None, {"ids": np.arange(0, 3000, 7)})[0].sum())
    if linked:  # as in the hub's cache
        (graph.parent / "weights.bin").rename(graph.parent.parent / "blob")
        (graph.parent / "weights.bin").symlink_to("../blob")
    done = subprocess.run([sys.executable, "-c", CODE, str(graph)], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fault", ["no /proc", OSError(1, "not permitted"), MemoryError()])
def test_where_mappings_cannot_be_replaced_files_stay_mapped(fault: object, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"ids": np.arange(0, 3000, 7)}
    expected = Sessions.on(threads=1).open(graph).run(None, feeds)[0]
    if isinstance(fault, str):
        monkeypatch.setattr(mappings, "MAPS", graph.parent / "none")
    else:

        def failing(start: int, size: int) -> None:
            raise fault  # type: ignore[misc]

        monkeypatch.setattr(mappings, "_replace", failing)
    left = Sessions.on(threads=1).open(graph)
    assert (left.run(None, feeds)[0] == expected).all()
    monkeypatch.undo()
    before = mappings.mapped({os.path.realpath(graph.parent / "weights.bin")})
    assert before
    again = Sessions.on(threads=1).open(graph)  # leaves alone what is not its own
    assert mappings.mapped({os.path.realpath(graph.parent / "weights.bin")}) == before
    assert (again.run(None, feeds)[0] == expected).all()


def test_a_session_that_fails_is_dropped_before_another_is_made(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = list[bool]()

    class Half:
        def __del__(self) -> None:
            dropped.append(sessions._loading.locked())

    def failing(*_: object, **__: object) -> None:
        half = Half()
        raise RuntimeError(f"not made: {type(half)}")

    monkeypatch.setattr("onnxruntime.InferenceSession", failing)
    with pytest.raises(BundleError, match="not made"):
        Sessions.on(threads=1).open(graph)
    assert dropped == [True]
