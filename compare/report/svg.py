"""Plots for the page: frames with axes as inline SVG, bars and histograms. Colours are CSS variables, for a light and a dark theme."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 26, 46
COLORS = 12  # then they come again
_OWN = {  # a variant has the same colour in every report, as far as two of one report do not share it
    "fp32": 0, "fp16": 1, "int8": 2, "int4": 3, "auto": 4, "int4-hqq": 5, "bf16": 6, "int8-weight": 7, "int8-static": 8, "pytorch": 9,
    "int4-gptq": 10,
}  # fmt: skip
_BASELINE, _GAP = 13, 7  # of the label of the axis that goes up; between the texts of its ticks and itself
_LINE = 15  # from one name to the next below it
_SIDES = ((1, "start"), (-1, "end"))
LETTER = 9.2  # widest likely, of a label on a phone
Box = tuple[float, float, float, float]  # left, top, right, bottom


def colors(content: Mapping[str, Any]) -> dict[str, int]:
    """Variant -> the number of its colour. Variants of other bundles and other names take those that are left, in the report's order."""
    names = list(content["variants"])
    chosen = {name: _OWN[name] for name in names if name in _OWN}
    free = [number for number in range(COLORS) if number not in chosen.values()] or list(range(COLORS))
    rest = [name for name in names if name not in chosen]
    return chosen | {name: free[i % len(free)] for i, name in enumerate(rest)}


def room_beside(texts: Sequence[str]) -> float:
    """What an axis that goes up takes on its left, with its label and the texts of its ticks."""
    return max(_LEFT, _BASELINE + 5 + LETTER * max(map(len, texts)) + _GAP)


class Frame:
    """A plot with two axes; `parts` are its elements so far.

    x, y: ticks, evenly spaced.  flipped: values fall from the bottom to the top.  left, bottom, right: room beside the axes.
    """

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        flipped: bool = False,
        left: float = _LEFT,
        bottom: int = _BOTTOM,
        right: int = _RIGHT,
    ) -> None:
        self.ticks, self.limits, self.flipped = (x, y), ((x[0], x[-1]), (y[0], y[-1])), flipped
        self.left, self.right, self.top, self.bottom = left, _WIDTH - right, _TOP, _HEIGHT - bottom
        self.parts: list[str] = []
        self._taken: list[Box] = []

    def x(self, value: float) -> float:
        """Where a value lies from the left."""
        low, high = self.limits[0]
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value lies from the top."""
        low, high = self.limits[1]
        share = (value - low) / (high - low)
        return self.top + (share if self.flipped else 1 - share) * (self.bottom - self.top)

    def axes(self, below: Sequence[str], beside: Sequence[str], x_label: str, y_label: str) -> None:
        """Lines, texts of the ticks and labels."""
        for value, text in zip(self.ticks[1], beside, strict=True):
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{self.left}" y1="{y:.1f}" x2="{self.right}" y2="{y:.1f}"/>')
            self.text(self.left - _GAP, y + 4, text, "end")
        for value, text in zip(self.ticks[0], below, strict=True):
            self.text(self.x(value), self.bottom + 17, text, "middle")
        self.text((self.left + self.right) / 2, _HEIGHT - 8, x_label, "middle")
        middle = (self.top + self.bottom) / 2
        self.parts.append(f'<text transform="translate({_BASELINE} {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')

    def text(self, x: float, y: float, text: str, anchor: str, name: bool = False) -> None:
        """A text; name: of a variant."""
        style = ' class="name"' if name else ""
        self.parts.append(f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def note(self, text: str, left: bool) -> None:
        """A soft word above a corner of the plot."""
        x, wide = self.left if left else self.right, LETTER * len(text)
        self.text(x, self.top - 10, text, "start" if left else "end")
        self.take((x, self.top - 22, x + wide, self.top - 6) if left else (x - wide, self.top - 22, x, self.top - 6))

    def dot(self, x: float, y: float, color: str, tip: str, chosen: bool = False) -> None:
        """A dot with a text on hover, in a ring where it is chosen."""
        a, b = self.x(x), self.y(y)
        ring = f'<circle class="ring" cx="{a:.1f}" cy="{b:.1f}" r="11"/>' if chosen else ""
        self.parts.append(f'{ring}<circle class="{color}" cx="{a:.1f}" cy="{b:.1f}" r="6"><title>{escape(tip)}</title></circle>')
        self._taken.append((a - 8, b - 8, a + 8, b + 8))

    def take(self, box: Box) -> None:
        """Keeps labels away from a box."""
        self._taken.append(box)

    def label(self, x: float, y: float, name: str) -> None:
        """A name by its dot, where it covers least: right, left, above, below, and further away, then with a line to its dot."""
        a, b, wide = self.x(x), self.y(y), LETTER * len(name)
        near = [(a + 14, b + 4, "start"), (a - 14, b + 4, "end"), (a, b - 15, "middle"), (a, b + 24, "middle")]
        away = [step * sign for step in (16, 32, 48, 64, 80) for sign in (1, -1)]
        places = near + [(a + out * side, b + 4 + step, anchor) for step in away for out in (14, 44) for side, anchor in _SIDES]
        begins = {"start": 0.0, "end": wide, "middle": wide / 2}

        def box(place: tuple[float, float, str]) -> Box:
            left = place[0] - begins[place[2]]
            return left, place[1] - 12, left + wide, place[1] + 3

        def cost(place: tuple[float, float, str]) -> float:
            own = box(place)
            beyond = max(0.0, 2 - own[0]) + max(0.0, own[2] - _WIDTH + 2) + max(0.0, 10 - own[1]) + max(0.0, own[3] - self.bottom - 6)
            return 100 * beyond + sum(_overlap(own, other) for other in self._taken)

        best = min(places, key=cost)
        if best not in near:
            self.parts.append(
                f'<path class="lead" d="M{a:.1f} {b:.1f}L{best[0] - 2 * (1 if best[2] == "start" else -1):.1f} {best[1] - 4:.1f}"/>'
            )
        self._taken.append(box(best))
        self.text(best[0], best[1], name, best[2], name=True)

    def labels_beside(self, ends: Mapping[str, float]) -> None:
        """Names of lines to the right of where they end (y), in their order and none upon another."""
        ordered = sorted(ends, key=lambda name: self.y(ends[name]))
        places: list[float] = []
        for name in ordered:
            places.append(max(self.y(ends[name]), places[-1] + _LINE if places else self.top))
        lowest = float(self.bottom)
        for i in reversed(range(len(places))):  # what would stand below the plot moves up, and those above it with it
            places[i] = lowest = min(places[i], lowest)
            lowest -= _LINE
        for name, y in zip(ordered, places, strict=True):
            self.text(self.right + 10, y + 4, name, "start", name=True)

    def svg(self, title: str) -> str:
        """The whole plot."""
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(self.parts)}</svg>'


def bars(
    content: Mapping[str, Any], groups: Mapping[str, Mapping[str, float | None]], show: Callable[[float], str], whole: float | None = None
) -> list[dict[str, Any]]:
    """Bars for HTML: [{"title", "bars": [{"name", "color", "width" (percent of `whole`, else of the longest), "text"}]}].

    groups: title -> variant -> value.  show: value -> text.
    """
    own = colors(content)
    longest = whole or max((v for group in groups.values() for v in group.values() if v), default=1.0)
    return [
        {
            "title": title,
            "bars": [
                {"name": name, "color": own[name], "width": round(100 * value / longest, 1), "text": show(value)}
                for name, value in group.items()
                if value is not None
            ],
        }
        for title, group in groups.items()
    ]


def first_differences(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Histograms of variants with differing answers: name, color, count, median and bars by position: [{"label", "count", "height"}]."""
    histograms, own = [], colors(content)
    for name, values in content["variants"].items():
        difference = values.get("first_difference")
        if not difference:
            continue
        counts = {int(place): count for place, count in difference["histogram"].items()}
        bins = _bins(max(counts))
        heights = [sum(count for place, count in counts.items() if low <= place <= high) for low, high in bins]
        bins_shown = [
            {"label": str(low + 1) if low == high else f"{low + 1}–{high + 1}", "count": count, "height": round(100 * count / max(heights))}
            for (low, high), count in zip(bins, heights, strict=True)
        ]
        histograms.append(
            {"name": name, "color": own[name], "count": difference["count"], "median": difference["median"] + 1, "bins": bins_shown}
        )
    return histograms


def _bins(last: int) -> list[tuple[int, int]]:
    """At most 8 ranges of positions of equal width over 0..last."""
    width = max(1, math.ceil((last + 1) / 8))
    return [(low, low + width - 1) for low in range(0, last + 1, width)]


def ticks(values: Sequence[float], least: float, top: float | None = None, bottom: float | None = 0.0) -> list[float]:
    """Round values, evenly spaced over all `values` with some air, within bottom and top.

    least: what they cover at least, so that a tiny difference does not fill the plot.
    """
    low, high = min(values), max(values)
    air = max((least - (high - low)) / 2, (high - low) * 0.12)
    low, high = low - air, high + air
    low, high = low if bottom is None else max(bottom, low), high if top is None else min(top, high)
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= (high - low) / 5 - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def nice(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten: divides well by 4."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
