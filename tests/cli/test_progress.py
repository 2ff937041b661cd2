"""What progress shows: stages, and of those with parts how far they are."""

import pytest

from onnxport.cli import console
from onnxport.cli.console import StageLines
from onnxport.progress import counted


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    monkeypatch.setattr(StageLines, "_ticks", lambda lines: None)  # tests tick themselves
    return made


def work(progress, clock, parts, seconds):
    told = counted(progress, "answering inputs")
    progress("reading")
    for number in range(parts):
        told(number, parts)
        clock.now += seconds
    progress("scoring")


def test_off_a_terminal_parts_are_told_every_ten_seconds(clock, capsys):
    with StageLines() as progress:
        work(progress, clock, 400, 0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "✓ reading (0.0 s)",
        "… answering inputs: 40 of 400 (10 s, about 1:30 min left)",
        "… answering inputs: 80 of 400 (20 s, about 1:20 min left)",
    ]
    assert lines[-2:] == ["✓ answering inputs (100.0 s)", "✓ scoring (0.0 s)"]
    assert len(lines) == 3 + 9


def test_short_work_off_a_terminal_is_a_line_a_stage(clock, capsys):
    with StageLines() as progress:
        work(progress, clock, 400, 0.01)
    assert capsys.readouterr().err.splitlines() == ["✓ reading (0.0 s)", "✓ answering inputs (4.0 s)", "✓ scoring (0.0 s)"]


def test_quiet_is_quiet(clock, capsys):
    with StageLines(quiet=True) as progress:
        work(progress, clock, 400, 1.0)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_spinner_goes_on(clock, monkeypatch):
    shown = []

    class Status:
        def __init__(self, text):
            shown.append(text)

        def start(self):
            pass

        def update(self, text):
            shown.append(text)

        def stop(self):
            shown.append("stop")

    with StageLines() as progress:
        monkeypatch.setattr(progress.console, "_force_terminal", True)
        monkeypatch.setattr(progress.console, "status", Status)
        monkeypatch.setattr(progress.console, "print", lambda *given, **options: None)
        told = counted(progress, "timing")
        told(0, 3)
        clock.now = 2.0
        told(1, 3)
    assert (shown[0], shown[-1], len(shown)) == ("timing", "stop", 4)
    assert "0 of 3 [dim](0 s)[/dim]" in shown[1]
    assert "1 of 3 [dim](2 s, about 4 s left)[/dim]" in shown[2]


def test_off_a_terminal_a_long_stage_is_told_as_it_begins_and_once_a_minute(clock, capsys):
    with StageLines() as progress:
        progress("tracing [b]")
        for _ in range(130):
            clock.now += 1
            progress.tick()
        progress("hash")
        clock.now += 0.9
        progress.tick()
    assert capsys.readouterr().err.splitlines() == [
        "… tracing [b]",
        "… tracing [b]: goes on (1:01 min)",
        "… tracing [b]: goes on (2:01 min)",
        "✓ tracing [b] (130.0 s)",
        "✓ hash (0.9 s)",
    ]


def test_parts_that_are_told_need_no_other_line(clock, capsys):
    with StageLines() as progress:
        told = counted(progress, "answering inputs")
        for number in range(100):
            told(number, 100)
            clock.now += 11
            progress.tick()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "… answering inputs" and lines[1].startswith("… answering inputs: 2 of 100 (22 s")
    assert not any("goes on" in line for line in lines)


def test_the_thread_that_ticks_ends_with_the_lines(monkeypatch, capsys):
    monkeypatch.setattr(StageLines, "SOON_S", 0.01)
    with StageLines() as progress:
        progress("tracing")
        while "… tracing" not in capsys.readouterr().err:
            pass
    progress._watch.join(10)
    assert not progress._watch.is_alive()
    with StageLines(quiet=True) as progress:
        progress("tracing")
    assert progress._watch is None
