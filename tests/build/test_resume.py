"""`export --resume`: what was finished is taken over, what was not or has changed is made again, and the bundle is the same in the end."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxport.build import contents, work
from onnxport.build.stages import build
from onnxport.errors import CheckpointError, OutputError
from onnxport.export import golden
from onnxport.graph import store
from onnxport.quantize.schemes import channel_scales
from onnxport.quantize.schemes.blocks import blockwise
from onnxport.runtime.bundle import publish, writer
from onnxport.runtime.bundle.publish import workspace
from onnxport.runtime.bundle.reader import Bundle
from support import causal_folders
from support.commands import COMMAND, invoke, started

pytestmark = pytest.mark.timeout(300)


class Lines(list[str]):
    """Progress that interrupts the work as a stage begins."""

    def __init__(self, until: str | None = None) -> None:
        self.until = until

    def __call__(self, stage: str) -> None:
        self.append(stage)
        if self.until is not None and self.until in stage:
            raise KeyboardInterrupt

    def noted(self, *parts: str) -> bool:
        return any(line.startswith("note: ") and all(part in line for part in parts) for line in self)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def product(path: Path, seed: int = 0) -> Path:
    """A file of two products: no folder, and quickly exported."""
    rng = np.random.default_rng(seed)
    weights = [numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), f"w{i}") for i in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", numbers[:1], numbers[1:], weights)
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


# ---- a folder


@pytest.fixture(scope="module")
def begun(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the work of an export to `out` that was interrupted before int8."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        build(str(model_folder), place / "out", resume=True, progress=Lines("make and check int8"))
    assert [path.name for path in place.iterdir()] == [".out.work"]
    return place


@pytest.fixture
def place(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "place"))


class Asked(Exception):
    """The graphs would be made again."""


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise Asked

    monkeypatch.setattr("onnxport.export.export", asked)


@pytest.mark.usefixtures("no_trace")
def test_finished_variants_and_graphs_are_taken_over(model_folder: Path, bundle: Bundle, place: Path) -> None:
    lines = Lines()
    build(str(model_folder), place / "out", resume=True, progress=lines)
    assert lines.noted("graphs and golden answers are taken over") and lines.noted("fp32 is taken") and lines.noted("fp16 is taken")
    assert "make and check int8" in lines and "make and check fp16" not in lines
    assert content(place / "out") == content(bundle.path)
    assert [path.name for path in place.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(("file", "other"), [("out/fp16/weights.bin", "fp32"), ("out/fp32/decoder.onnx", "fp16")])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink], ids=["cut", "gone"])
def test_a_variant_that_was_changed_is_made_again(
    model_folder: Path, bundle: Bundle, place: Path, file: str, other: str, change: Callable[[Path], Any]
) -> None:
    change(place / ".out.work" / file)
    lines = Lines()
    build(str(model_folder), place / "out", resume=True, progress=lines)
    again = file.split("/")[1]
    assert lines.noted(f"{again} is made again") and lines.noted(f"{other} is taken") and f"make and check {again}" in lines
    assert content(place / "out") == content(bundle.path)


@pytest.mark.usefixtures("no_trace")
def test_what_was_only_begun_is_removed(model_folder: Path, bundle: Bundle, place: Path) -> None:
    for name in ("out/int8/weights.bin", "out/auto-trial/model.onnx", "fused/more.onnx", "journal.part"):
        (place / ".out.work" / name).parent.mkdir(exist_ok=True)
        (place / ".out.work" / name).write_text("half")
    (place / ".out.work" / "out" / "link").symlink_to(model_folder)
    build(str(model_folder), place / "out", resume=True)
    assert content(place / "out") == content(bundle.path) and model_folder.is_dir()


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("file", ["fused/weights.bin", "fused/decoder.onnx", "out/golden.npz", "out/tokenizer.json"])
def test_graphs_that_were_changed_are_made_again(model_folder: Path, place: Path, file: str) -> None:
    path = place / ".out.work" / file
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    lines = Lines()
    with pytest.raises(Asked):
        build(str(model_folder), place / "out", resume=True, progress=lines)
    assert lines.noted("graphs and golden answers are made again: some of them have changed")
    assert (place / ".out.work" / "out" / "fp16" / "weights.bin").exists()  # they may be of the graphs that are made now


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("what", ["source", "name", "options", "version", "journal"])
def test_the_work_of_another_export_is_not_taken_over(model_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    source, options = Path(shutil.copytree(model_folder, place / "tiny")), {}
    if what == "source":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"max_length": 9}))
    elif what == "name":
        source = source.rename(place / "another")
    elif what == "options":
        options = {"task": "text2text"}
    elif what == "version":
        monkeypatch.setattr(contents, "__version__", "0.0.0")
    else:
        path = place / ".out.work" / "journal.json"
        path.write_bytes(path.read_bytes().replace(b"fp16", b"fp15"))
    lines = Lines()
    with pytest.raises(Asked):
        build(str(source), place / "out", resume=True, progress=lines, **options)
    assert lines.noted(f"is of another {'source' if what == 'name' else what}: everything is made anew")
    assert not (place / ".out.work").exists()


@pytest.mark.usefixtures("no_trace")
def test_other_precisions_take_over_what_they_share(model_folder: Path, place: Path) -> None:
    made = build(str(model_folder), place / "out", precision=("fp16", "fp32"), resume=True)
    assert list(made.variants) == ["fp16", "fp32"] and made.default == "fp16"


def test_other_commands_leave_the_work_alone(model_folder: Path, place: Path) -> None:
    before = content(place / ".out.work")
    with workspace(place / "out"):
        pass
    build(product(place / "model.onnx"), place / "out", precision=("fp32",))
    assert invoke("quantize", place / "out", "--precision", "int8-weight").exit_code == 0
    assert content(place / ".out.work") == before


# ---- a file, whose graphs are always made again


def test_a_file_whose_graphs_come_out_the_same(tmp_path: Path) -> None:
    source, precisions = product(tmp_path / "model.onnx"), ("fp32", "fp16", "int8")
    whole = build(source, tmp_path / "whole", precision=precisions)
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out", precision=precisions, resume=True, progress=Lines("make and check int8"))
    lines = Lines()
    build(source, tmp_path / "out", precision=precisions, resume=True, progress=lines)
    assert lines.noted("made again: the source is no folder") and lines.noted("fp32 is taken") and lines.noted("fp16 is taken")
    assert content(tmp_path / "out") == content(whole.path)


def test_a_file_whose_graphs_come_out_otherwise(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(product(tmp_path / "model.onnx"), tmp_path / "out", resume=True, progress=Lines("make and check int8"))
    lines, source = Lines(), product(tmp_path / "model.onnx", seed=1)
    whole = build(source, tmp_path / "whole")
    build(source, tmp_path / "out", resume=True, progress=lines)
    assert not lines.noted("is taken over") and content(tmp_path / "out") == content(whole.path)


def test_an_interrupt_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every third file that is brought to the disk or renamed."""
    source, precisions = product(tmp_path / "model.onnx"), ("fp32", "int8-weight")
    whole = content(build(source, tmp_path / "whole", precision=precisions).path)
    real = {(module, name): getattr(module, name) for module, name in ((work, "sync"), (writer, "sync"), (work.os, "replace"))}
    for step in range(1, 200, 3):
        left = step

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def done(*arguments: Any) -> Any:
                nonlocal left
                result = call(*arguments)
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
                return result

            return done

        for (module, name), call in real.items():
            monkeypatch.setattr(module, name, counted(call))
        out = tmp_path / f"{step}"
        try:
            build(source, out, precision=precisions, resume=True)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            for (module, name), call in real.items():
                monkeypatch.setattr(module, name, call)
        assert not out.exists()
        build(source, out, precision=precisions, resume=True)
        assert content(out) == whole
    else:
        raise AssertionError("the export never came to its end")
    assert step > 10 and sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_work_that_cannot_be_published_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, full = product(tmp_path / "source" / "model.onnx"), publish.publish

    def fails(made: Path, place: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish, "publish", fails)
    with pytest.raises(OutputError, match="No space left"):
        build(source, tmp_path / "out", precision=("fp32",), resume=True)
    monkeypatch.setattr(publish, "publish", full)
    lines = Lines()
    build(source, tmp_path / "out", precision=("fp32",), resume=True, progress=lines)
    assert lines.noted("fp32 is taken over") and sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_killed_export_goes_on(tmp_path: Path) -> None:
    source, journal = product(tmp_path / "source" / "model.onnx"), tmp_path / ".out.work" / "journal.json"
    command = [*COMMAND, "export", str(source), "--out", str(tmp_path / "out"), "--resume", "-q"]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < until and not (journal.exists() and b'"fp16"' in journal.read_bytes()):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert journal.exists() or (tmp_path / "out").exists()
    result = invoke("export", source, "--out", tmp_path / "out", "--resume", "--force")
    assert result.exit_code == 0, result.output
    whole = build(source, tmp_path / "whole")
    assert content(tmp_path / "out") == content(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def test_a_second_export_waits_for_the_first(tmp_path: Path) -> None:
    source, lines = product(tmp_path / "source" / "model.onnx"), Lines()
    second = threading.Thread(
        target=build, args=(source, tmp_path / "out"), kwargs={"precision": ("fp32",), "resume": True, "progress": lines}, daemon=True
    )
    with workspace(tmp_path / "out"):
        second.start()
        until = time.monotonic() + 60
        while not any(line.startswith("wait for process") for line in lines) and time.monotonic() < until:
            time.sleep(0.01)
        assert lines[-1].startswith("wait for process") and not (tmp_path / ".out.work").exists()
    second.join(60)
    assert Bundle.open(tmp_path / "out").variants and sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_without_anything_finished_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build(str(tmp_path / "missing"), tmp_path / "out", resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_work_folder_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    source, elsewhere = product(tmp_path / "source" / "model.onnx"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("x")
    if kind == "link":
        (tmp_path / ".out.work").symlink_to(elsewhere)
    else:
        (tmp_path / ".out.work").write_text("x")
    with pytest.raises(OutputError, match=r"\.out\.work: expected no such thing"):
        build(source, tmp_path / "out", resume=True)
    assert (elsewhere / "mine").exists() and not (tmp_path / "out").exists()


# ---- a checkpoint that stays mapped


@pytest.fixture
def mapped_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama in bfloat16 with a tokenizer of bytes, whose random weights are taken for large ones that know the kit's texts."""
    monkeypatch.setattr(golden, "KNOWN", 1000.0)
    monkeypatch.setattr(store, "LEAST", 8192)
    characters = {character: i + 3 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | characters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = causal_folders.write(tmp_path / "llama", "llama", vocab_size=len(characters) + 3, max_position_embeddings=96)
    file = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


class Counted:
    """Calls of a function; that of a number ends with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, fails: int | None = None) -> None:
        self.count, self._call, self._fails = 0, getattr(place, name), fails
        monkeypatch.setattr(place, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        if self.count == self._fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._call(*arguments, **options)


def test_fitted_weights_and_golden_answers_are_taken_over(mapped_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, precisions, out = str(mapped_folder), ("int4",), tmp_path / "out"
    with monkeypatch.context() as patch:
        solved, tried = Counted(patch, blockwise, "quantize_gptq"), Counted(patch, channel_scales, "_best")
        whole = build(source, tmp_path / "whole", precision=precisions)
    assert solved.count == 8 and tried.count == 9  # four products a layer, their inputs and that of the head
    with monkeypatch.context() as patch:
        Counted(patch, blockwise, "quantize_gptq", fails=6)
        with pytest.raises(OSError, match="No space left"):
            build(source, out, precision=precisions, resume=True)
    work_folder = tmp_path / ".out.work"
    assert not (work_folder / "fused").exists() and len(list((work_folder / "fitted").rglob("*"))) == 1 + 9 + 5
    damaged = max((work_folder / "fitted").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    lines = Lines()
    with monkeypatch.context() as patch:
        again, known = Counted(patch, blockwise, "quantize_gptq"), Counted(patch, channel_scales, "_best")
        asked = Counted(patch, golden, "in_step")
        build(source, out, precision=precisions, resume=True, progress=lines)
    assert lines.noted("golden answers are taken over") and not lines.noted("graphs") and asked.count == 0
    assert again.count == solved.count - 5 + 1 and known.count == 0  # all but the damaged one are there
    assert content(out) == content(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "out", "whole"]
