"""Progress: how long work tells whoever waits for it which stage begins."""

from collections.abc import Callable

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """Progress that nobody reads."""
