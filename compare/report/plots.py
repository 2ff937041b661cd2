"""Plots as inline SVG and as the widths of bars. Colours are CSS variables, so that the page's light and dark themes hold for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from onnxport.compare.report import figures

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 32, 46


def quality_and_speed(content: Mapping[str, Any]) -> str:
    """Speed to the right, quality upwards (or agreement where no quality was measured), area = size on disk; "" with nothing to show."""
    variants = content["variants"]
    metric = next(iter(figures.quality_names(content)), "agreement")
    points = {name: v for name, v in variants.items() if v.get(metric) is not None}
    if len(points) < 2:
        return ""
    scale = 1 if metric in ("bleu", "chrf", "perplexity") else 100
    values = {name: v[metric] * scale for name, v in points.items()}
    low, high = _range(list(values.values()), least=2.0 if scale == 1 else 4.0, top=None if metric == "perplexity" else 100.0)
    right = _nice(max(v["throughput"] for v in points.values()) * 1.08)
    label = ("Same answers" if metric == "agreement" else figures.heading(metric)) + (" (%)" if scale == 100 else "")
    parts = _axes(right, low, high, f"{content['method']['unit']}, batch {content['method']['batches'][0]}", label)
    biggest = max((v.get("size_bytes") or 1) for v in points.values())
    taken: list[tuple[float, float, float]] = []
    order = list(variants)
    for name, v in points.items():
        x = _LEFT + v["throughput"] / right * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - values[name]) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        radius = 7 + 19 * math.sqrt((v.get("size_bytes") or 1) / biggest)
        tip = f"{name}: {figures.significant(v['throughput'])} {content['method']['unit']}, {label} {values[name]:.2f}"
        tip += f", {figures.megabytes(v.get('size_bytes'))}"
        parts.append(
            f'<circle class="c{order.index(name) % 6}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(tip)}</title></circle>'
        )
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
        parts.append(_label(name, x, y, radius, taken))
    title = f"{label} against speed; the area is the size on disk"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def bars(
    content: Mapping[str, Any], groups: Mapping[str, Mapping[str, float | None]], show: Callable[[float], str]
) -> list[dict[str, Any]]:
    """Bars for HTML: [{"title", "bars": [{"name", "color", "width" (percent of the longest), "text"}]}].

    groups: title -> variant -> value.  show: value -> text.
    """
    order = list(content["variants"])
    longest = max((v for group in groups.values() for v in group.values() if v), default=1.0)
    return [
        {
            "title": title,
            "bars": [
                {"name": name, "color": order.index(name) % 6, "width": round(100 * value / longest, 1), "text": show(value)}
                for name, value in group.items()
                if value is not None
            ],
        }
        for title, group in groups.items()
    ]


def first_differences(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per variant with differing answers: name, color, count, median and bars by position: [{"label", "count", "height"}]."""
    found = []
    for number, (name, values) in enumerate(content["variants"].items()):
        difference = values.get("first_difference")
        if not difference:
            continue
        counts = {int(place): count for place, count in difference["histogram"].items()}
        bins = _bins(max(counts))
        heights = [sum(count for place, count in counts.items() if low <= place <= high) for low, high in bins]
        shown = [
            {"label": str(low + 1) if low == high else f"{low + 1}–{high + 1}", "count": count, "height": round(100 * count / max(heights))}
            for (low, high), count in zip(bins, heights, strict=True)
        ]
        found.append({"name": name, "color": number % 6, "count": difference["count"], "median": difference["median"] + 1, "bins": shown})
    return found


def _bins(last: int) -> list[tuple[int, int]]:
    """At most 8 ranges of positions of equal width over 0..last."""
    width = max(1, math.ceil((last + 1) / 8))
    return [(low, low + width - 1) for low in range(0, last + 1, width)]


def _label(name: str, x: float, y: float, radius: float, taken: list[tuple[float, float, float]]) -> str:
    """A name beside its circle, moved down while it would cover another."""
    width = 7.6 * len(name)
    left = x + radius + 5 + width > _WIDTH - 2
    start = x - radius - 5 - width if left else x + radius + 5
    place = y + 4
    while any(abs(place - other) < 15 and start < end and start + width > begin for begin, end, other in taken):
        place += 15
    taken.append((start, start + width, place))
    return f'<text class="name" x="{start:.1f}" y="{place:.1f}">{escape(name)}</text>'


def _axes(right: float, low: float, high: float, below: str, beside: str) -> list[str]:
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = []
    ticks = ",.0f" if right >= 8 else ".2f"
    for step in range(5):
        x, y = _LEFT + plot_width * step / 4, _TOP + plot_height * (1 - step / 4)
        value = low + (high - low) * step / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{right * step / 4:{ticks}}</text>')
    middle = _TOP + plot_height / 2
    parts.append(f'<text class="axis" x="{_LEFT + plot_width / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(below)}</text>')
    parts.append(f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(beside)}</text>')
    return parts


def _range(values: Sequence[float], least: float, top: float | None) -> tuple[float, float]:
    """Limits of an axis: some air, and never so narrow that a tiny difference fills the plot."""
    low, high = min(values), max(values)
    air = max((least - (high - low)) / 2, (high - low) * 0.25)
    low, high = low - air, high + air
    if top is not None and high > top:
        low, high = low - (high - top), top
    return max(0.0, low), high


def _nice(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten: divides well by 4."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value)
