"""Only regular files are read, whoever reads them, and nothing waits for what is none."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.compare.data import read_data
from onnxport.compare.report.baseline import read_baseline
from onnxport.errors import OnnxportError
from onnxport.files import first_special, open_regular, read_regular
from onnxport.quantize.plan import read_plan

pytestmark = pytest.mark.timeout(60)


def test_content_of_at_most_so_many_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, expected at most 4"):
        read_regular(tmp_path / "a", 4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded there")
def test_no_more_memory_than_a_file_needs(tmp_path: Path) -> None:
    code = """
        import gzip, resource, sys
        from pathlib import Path
        from onnxport.compare.data import read_data
        from onnxport.files import read_regular
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)
        folder = Path(sys.argv[1])
        (folder / "a").write_bytes(b"12345")
        assert read_regular(folder / "a", 1 << 40) == b"12345"
        (folder / "a.txt.gz").write_bytes(gzip.compress(b"a text"))
        assert read_data(folder / "a.txt.gz").inputs == ["a text"]
        assert b"VmPeak" in read_regular("/proc/self/status", 1 << 40)  # its size is said to be 0
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a folder"])
def test_what_is_no_regular_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        socket.socket(socket.AF_UNIX).bind("a")
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"it is {kind}, expected a regular file"):
        open_regular(path)
    assert first_special(tmp_path) == (None if kind == "a folder" else (path, kind))


@pytest.mark.parametrize(("read", "name"), [(read_data, "a.tsv"), (read_plan, "plan.json"), (read_baseline, "report.json")])
def test_readers_of_files_that_users_name(tmp_path: Path, read: Callable[[Any], Any], name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OnnxportError, match="FIFO") as caught:
        read(tmp_path / name)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json", "additional_chat_templates/a.jinja"])
def test_sources(tmp_path: Path, name: str) -> None:
    from onnxport.export.resolve import resolve

    folder = tmp_path / "model"
    (folder / name).parent.mkdir(parents=True)
    os.mkfifo(folder / name)
    with pytest.raises(OnnxportError, match="FIFO") as caught:
        resolve(str(folder / name if name.endswith(".onnx") else folder))
    assert caught.value.exit_code == 4


def test_a_pooling_of_sentence_transformers(tmp_path: Path) -> None:
    from onnxport.export.sentence_transformers import read_modules

    (tmp_path / "modules.json").write_text('[{"path": "1_Pooling", "type": "x.Pooling"}]')
    (tmp_path / "1_Pooling").mkdir()
    os.mkfifo(tmp_path / "1_Pooling" / "config.json")
    with pytest.raises(OnnxportError, match="FIFO") as caught:
        read_modules(tmp_path)
    assert caught.value.exit_code == 4


def test_what_no_loader_reads_is_passed_over(tmp_path: Path) -> None:
    from onnxport.export.resolve import resolve

    for place in (".git", "runs"):
        (tmp_path / place).mkdir()
        os.mkfifo(tmp_path / place / "a")
    os.mkfifo(tmp_path / ".lock")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OnnxportError, match="has no config.json"):
        resolve(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxport.export.resolve import resolve

    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("onnxport.files.os.listdir", refuse)
    with pytest.raises(OnnxportError, match="cannot be read: Permission denied") as caught:
        resolve(tmp_path)
    assert caught.value.exit_code == 4
