"""Work on pieces of a weight, shared out among the processor's cores: numpy lets other threads run while it computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onnxport.runtime.processor import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What the function returns for each item, in their order. Whoever stops asking leaves the rest undone."""
    if cores() == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(cores(), "pieces") as pool:
        yield from pool.map(function, items)
