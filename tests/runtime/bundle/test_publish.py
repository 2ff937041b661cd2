"""Outputs are whole at any moment: a writer is killed after each change of the file system, with an exchange in one step or in two."""

import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, OutputError
from onnxport.runtime.bundle import publish as module
from onnxport.runtime.bundle.publish import check_file, publish, recover, workspace, write_file
from onnxport.runtime.bundle.writer import bundle_folder
from support.commands import started

STEPS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "ftruncate", "close")


def write(place: Path, text: str, progress: Callable[[str], None] = lambda _: None) -> None:
    """A folder of two files that say the same."""
    with workspace(place, progress) as folder:
        made = folder / place.name
        made.mkdir()
        for name in ("a", "b"):
            (made / name).write_text(text)
        publish(made, place)


def read(place: Path) -> str:
    """What both files say; "" for nothing."""
    if not recover(place):
        return ""
    one, two = ((place / name).read_text() for name in ("a", "b"))
    assert one == two
    return one


def hidden(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir() if path.name.startswith("."))


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)


def killed(work: Callable[[], None], step: int) -> bool:
    """Whether a child that does `work` was killed, as it is after so many calls that change the file system; else it has ended."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                done = real(*arguments, **options)
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        module._exchange = counted(module._exchange)
        try:
            work()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", ["old", ""])
def test_something_whole_is_there_after_every_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, old: str) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    seen = set()
    for step in range(1, 200):
        place = tmp_path / str(step) / "out"
        place.parent.mkdir()
        if old:
            write(place, old)
        if not killed(lambda place=place: write(place, "new"), step):
            break
        if exchange and old:
            assert (place / "a").read_text() == (place / "b").read_text() in (old, "new")  # without any recovery
        seen.add(read(place))
        write(place, "again")
        assert read(place) == "again"
        assert hidden(place) == []
    else:
        raise AssertionError("the writer never came to its end")
    assert step > 10
    assert seen == {old, "new"}


def test_what_a_living_writer_works_on_stays(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with workspace(place) as folder:
        (folder / "half").write_text("x")
        assert not recover(place)
        assert (folder / "half").exists()


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    others = [".out.v2.01234567.part", ".out.0123.part", ".output.01234567.part", ".out.01234567.party", ".out.01234567.part.x"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.aaaaaaaa.part").symlink_to(tmp_path / others[0])
    write(tmp_path / "out", "x")
    assert hidden(tmp_path / "out") == sorted([*others, ".out.aaaaaaaa.part"])


def test_a_second_writer_waits_and_says_so(tmp_path: Path) -> None:
    place, said, begun = tmp_path / "out", list[str](), threading.Event()

    def second() -> None:
        def tell(text: str) -> None:
            said.append(text)
            begun.set()

        write(place, "second", tell)

    thread = threading.Thread(target=second)
    with workspace(place) as folder:
        thread.start()
        assert begun.wait(30)
        made = folder / "out"
        made.mkdir()
        for name in ("a", "b"):
            (made / name).write_text("first")
        publish(made, place)
        assert read(place) == "first"
    thread.join(30)
    assert read(place) == "second"
    assert said == [f"wait for process {os.getpid()}, which writes {place}"]
    assert hidden(place) == []


def add(place: Path, mine: str) -> None:
    """Adds a name to a file of names."""
    with workspace(place) as folder:
        names = place.read_text().split() if place.exists() else []
        (folder / "made").write_text(" ".join([*names, mine]))
        publish(folder / "made", place)


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(24)]
    with multiprocessing.get_context("fork").Pool(6) as pool:
        pool.starmap(add, [(tmp_path / "out", name) for name in names])
    assert sorted((tmp_path / "out").read_text().split()) == sorted(names)
    assert hidden(tmp_path / "out") == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    place, rename, calls = tmp_path / "out", os.rename, [0]
    write(place, "old")
    without_exchange(monkeypatch)

    def counted(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", counted)
    with pytest.raises(OutputError, match="No space left"):
        write(place, "new")
    assert read(place) == "old"
    assert hidden(place) == []


def test_an_exchange_that_fails_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")

    def failing(one: Path, other: Path) -> bool:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(module, "_exchange", failing)
    with pytest.raises(OutputError, match="cross-device"):
        write(tmp_path / "out", "new")
    assert read(tmp_path / "out") == "old"
    assert hidden(tmp_path / "out") == []


def test_who_cannot_put_back_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out"
    write(tmp_path / ".out.01234567.part" / "old", "old")

    def failing(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "rename", failing)
        told = r"Read-only.*move .*\.out\.01234567\.part/old there"
        with pytest.raises(BundleError, match=told):
            recover(place)
        with pytest.raises(OutputError, match=told), bundle_folder(place):
            pytest.fail("it was written over")
    assert read(place) == "old"


def test_an_interrupt_while_the_old_one_is_removed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, remove, calls = tmp_path / "out", shutil.rmtree, [0]
    write(place, "old")

    def interrupted(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise KeyboardInterrupt
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(place, "new")
    assert read(place) == "new"
    assert hidden(place) == []


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to a fifo"])
def test_what_is_no_regular_file_is_not_written_over(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out"
    if kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "fifo")
        place.symlink_to("fifo") if kind != "fifo" else os.mkfifo(place)
    before = place.lstat()
    with pytest.raises(OutputError, match="expected a regular file"):
        write_file(place, b"x", force=True)
    assert os.path.samestat(before, place.lstat())


def test_a_file_is_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OutputError, match="--force"):
        write_file(tmp_path / "link", b"new", force=False)
    write_file(tmp_path / "link", b"new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) & 0o400
    assert hidden(tmp_path / "link") == []


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POSIX", False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name in ("geteuid", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        monkeypatch.delattr(os, name)
    for content in (b"old", b"new"):
        write_file(tmp_path / "out", content, force=True)
        assert (tmp_path / "out").read_bytes() == content
    with pytest.raises(OutputError, match="--force"):
        write_file(tmp_path / "out", b"x", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_as_long_as_can_be_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write(tmp_path / ("x" * 255), "x")


@pytest.mark.parametrize(("name", "told"), [("x" * 300, "name too long"), ("file/out", "Not a directory"), ("loop", "symbolic links")])
def test_a_file_that_cannot_be_there_is_an_output_error(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=f"cannot be written .*{told}.*choose another place"):
        check_file(tmp_path / name, force=False)


def test_a_folder_that_cannot_be_synced_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "sync", failing)
    for text in ("old", "new"):
        write(tmp_path / "out", text)
        assert read(tmp_path / "out") == text
    assert hidden(tmp_path / "out") == []


def test_a_writer_that_waits_can_be_interrupted(tmp_path: Path) -> None:
    place = tmp_path / "out"
    code = """
        import sys
        from pathlib import Path
        from onnxport.runtime.bundle.publish import workspace
        try:
            with workspace(Path(sys.argv[1]), lambda text: print(text, flush=True)):
                print("entered")
        except KeyboardInterrupt:
            print("interrupted")
    """
    with workspace(place):
        command = [sys.executable, "-c", textwrap.dedent(code), str(place)]
        with started(command, stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline().startswith("wait for process")
            waiting.send_signal(signal.SIGINT)
            assert waiting.communicate(timeout=30)[0] == "interrupted\n"
        assert hidden(place) != []
    assert hidden(place) == []


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    place = tmp_path / "out.npz"
    write_file(place, b"old", force=False)
    for mode in (0o640, 0o755, 0o600):
        place.chmod(mode)
        write_file(place, b"new", force=True)
        assert place.read_bytes() == b"new" and stat.S_IMODE(place.stat().st_mode) == mode
    link = tmp_path / "link"
    link.symlink_to(place)
    write_file(link, b"newer", force=True)
    assert link.is_symlink() and place.read_bytes() == b"newer" and stat.S_IMODE(place.stat().st_mode) == 0o600
