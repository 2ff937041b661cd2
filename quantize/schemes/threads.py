"""Work on pieces of a weight, shared out among the processor's cores: numpy lets other threads run while it computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onnxport.runtime.processor import cores

MOST = 8  # threads: between numpy's operations, of some 50 microseconds, only one of them goes on at a time
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What the function returns for each item, in their order. Whoever stops asking leaves the rest undone."""
    threads = min(cores(), MOST)
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, "pieces") as pool:
        yield from pool.map(function, items)
