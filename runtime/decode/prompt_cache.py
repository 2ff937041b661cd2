"""Keys and values of prompts and answers, kept in bounded memory: a prompt that begins as another did is read from where they part.

What was read is kept as segments of a tree: each has the entries of its own positions, and those before are its parent's. A segment may
be used in part, so two texts share what they have in common to the token. Out goes the segment that was not used for longest, of those on
which no other stands.

An entry depends on the ids before it only, so that an answer is the one without the cache, but for the last digits of sums: the positions
of a longer run may be summed in another order. A layer with a window keeps the newest entries alone, and they move: so where layers have
windows, only texts that fit into the smallest of them are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.runtime.decode.cache import HostCache


@dataclass(eq=False)
class Segment:
    """The entries of the positions start..len(ids) of a text. ids: int64, the text from its beginning. arrays: [heads, positions, size] of
    each key and value. children: segments whose parent it is."""

    ids: np.ndarray
    start: int
    parent: Segment | None
    arrays: list[np.ndarray]
    children: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ids.nbytes + sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class Beginning:
    """What is known of a text: its first `length` entries, by segments with the position at which each ends."""

    length: int = 0
    segments: Sequence[tuple[Segment, int]] = ()

    def put(self, cache: HostCache, row: int) -> None:
        """Write the entries into a row of a cache that has room for them."""
        for segment, stop in self.segments:
            for array, kept in zip(cache.arrays, segment.arrays, strict=True):
                array[row, :, segment.start : stop] = kept[:, : stop - segment.start]


class PromptCache:
    """Safe to use from many threads. most: bytes of all that is kept. window: positions of the smallest window of a layer, None without."""

    def __init__(self, most: int, window: int | None = None) -> None:
        self.most, self.window, self.size = most, window, 0
        self._segments: dict[Segment, None] = {}  # the one that was not used for longest first
        self._lock = threading.Lock()

    def find(self, ids: Sequence[int]) -> Beginning:
        """The most that is known of how these ids begin, but for the last: something must be left to run."""
        with self._lock:
            return self._find(np.array(ids[:-1], np.int64))

    def _find(self, ids: np.ndarray) -> Beginning:
        length, best = 0, None
        for segment in self._segments:
            common = _common(segment.ids, ids)
            if common > length:
                length, best = common, segment
        found, stop = [], length
        while best is not None:
            self._segments[best] = self._segments.pop(best)  # parents come after their children: out last
            if best.start < stop:
                found.append((best, stop))
                stop = best.start
            best = best.parent
        return Beginning(length, found[::-1])

    def add(self, ids: Sequence[int], cache: HostCache, row: int) -> None:
        """Keep the entries of these ids, which a row of a cache holds, as far as they are not known yet; what is too large is left out."""
        text = np.array(ids, np.int64)
        if self.window is not None and len(text) > self.window:
            return
        with self._lock:
            known = self._find(text)
            if known.length == len(text):
                return
            views = [array[row, :, known.length : len(text)] for array in cache.arrays]
            parent = known.segments[-1][0] if known.segments else None
            if parent is not None:
                parent.children += 1
            if self._make_room(text.nbytes + sum(view.nbytes for view in views), parent):
                segment = Segment(text, known.length, parent, [view.copy() for view in views])
                self._segments[segment] = None
                self.size += segment.size
                ancestor = parent
                while ancestor is not None:
                    self._segments[ancestor] = self._segments.pop(ancestor)
                    ancestor = ancestor.parent
            elif parent is not None:
                parent.children -= 1

    def _make_room(self, size: int, parent: Segment | None) -> bool:
        """Let segments go until there is room for so many bytes that stand on `parent`; False, and all stay, where there cannot be."""
        needed, ancestor = size, parent
        while ancestor is not None:
            needed, ancestor = needed + ancestor.size, ancestor.parent
        if needed > self.most:
            return False
        while self.size + size > self.most:
            victim = next((segment for segment in self._segments if not segment.children), None)
            if victim is None:
                return False
            del self._segments[victim]
            self.size -= victim.size
            if victim.parent is not None:
                victim.parent.children -= 1
        return True


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids both begin with."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
