"""Progress is a function that long work calls with the name of each stage as it begins.

A stage that has parts is called again for each of them, with how many are done: "answering inputs (40 of 200)". `COUNTED` reads that.
"""

import re
from collections.abc import Callable

Progress = Callable[[str], None]
COUNTED = re.compile(r"(?P<stage>.*) \((?P<done>\d+) of (?P<total>\d+)\)", re.DOTALL)


def silent(stage: str) -> None:
    """Progress that nobody reads."""


def counted(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """A function of how many parts are done and how many there are, for a stage with parts."""

    def told(done: int, total: int) -> None:
        progress(f"{stage} ({done} of {total})")

    return told
