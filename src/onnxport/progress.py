"""Progress is a function that long work calls with the name of each stage as it begins."""

from collections.abc import Callable

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """Progress that nobody reads."""
