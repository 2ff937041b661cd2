"""The frontier of quality against speed or size: the variants that no other beats in both, as inline SVG."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from onnxport.compare.gates import lookup
from onnxport.compare.report import format
from onnxport.compare.report.svg import Frame, colors, nice, room_beside, ticks


@dataclass(frozen=True)
class Point:
    """A variant: x (speed or bytes), y (quality as the axis shows it), and where each may lie (low, high) where that is known."""

    name: str
    x: float
    y: float
    x_range: tuple[float, float] | None
    y_range: tuple[float, float] | None


@dataclass(frozen=True)
class Quality:
    """The metric that stands for quality: its path in a variant, its label, whether more of it is better, and its axis.

    share: the axis is in percent.  log: decades are what counts, of errors.
    """

    path: str
    label: str
    more_is_better: bool = True
    share: bool = True
    log: bool = False

    def shown(self, value: float) -> float:
        """A value in the axis' unit: shares as percent, errors as powers of ten."""
        if self.log:
            return math.log10(max(value, 1e-12))
        return 100 * value if self.share else value

    def tick(self, value: float) -> str:
        """A number at the axis."""
        return f"{10**value:.0e}" if self.log else f"{value:.10g}%" if self.share else f"{value:.10g}"


def quality_of(content: Mapping[str, Any]) -> Quality | None:
    """The lead metric; without references sameness, or the error of the golden answers; None where no two variants have a metric."""
    known = [Quality(m.name, m.heading, not m.lower_is_better, m.share) for m in format.task_metrics(content)]
    known += [Quality("agreement", "Same answers"), Quality("cosine", "Cosine to the reference")]
    known.append(Quality("parity.relative_error", "Relative error of the golden answers", more_is_better=False, share=False, log=True))
    for quality in known:
        if sum(lookup(values, quality.path) is not None for values in content["variants"].values()) > 1:
            return quality
    return None


def points(content: Mapping[str, Any], along: str) -> list[Point]:
    """The variants that have both, in the report's order. along: "speed" or "size"."""
    quality, base = quality_of(content), content["variants"][content["reference"]]
    measured = []
    for name, values in content["variants"].items():
        y = None if quality is None else lookup(values, quality.path)
        x = lookup(values, "throughput" if along == "speed" else "size_bytes")
        if quality is None or y is None or x is None:
            continue
        spread, loss, whole = values.get("speedup_ci"), values.get(f"{quality.path}_drop_ci"), lookup(base, quality.path)
        x_range = None
        if along == "speed" and spread and name != content["reference"] and base.get("throughput"):
            x_range = (min(x, spread["low"] * base["throughput"]), max(x, spread["high"] * base["throughput"]))
        y_range = None
        if loss and whole is not None:
            ends = sorted(quality.shown(whole - (loss[end] if quality.more_is_better else -loss[end])) for end in ("low", "high"))
            y_range = (ends[0], ends[1])
        measured.append(Point(name, x, quality.shown(y), x_range, y_range))
    return measured


def front(content: Mapping[str, Any], along: str) -> list[str]:
    """Names of the variants that no other beats in both quality and speed (or size), from the left to the right of the plot."""
    quality, all_points = quality_of(content), points(content, along)
    if quality is None:
        return []
    up, right = 1 if quality.more_is_better else -1, 1 if along == "speed" else -1

    def beaten(p: Point) -> bool:
        return any(
            up * q.y >= up * p.y and right * q.x >= right * p.x and (up * q.y > up * p.y or right * q.x > right * p.x) for q in all_points
        )

    return [p.name for p in sorted(all_points, key=lambda p: p.x) if not beaten(p)]


def draw(content: Mapping[str, Any], along: str) -> str:
    """SVG: quality upwards, always better at the top; speed or size to the right. "" where fewer than two variants have both."""
    quality, measured = quality_of(content), points(content, along)
    if quality is None or len(measured) < 2:
        return ""
    speed = along == "speed"
    unit = f"{content['method']['unit']}, batch {content['method']['batches'][0]}" if speed else "MB on disk"
    scale = 1.0 if speed else 1e6
    furthest = max(p.x for p in measured)
    right = nice(
        min(max(max(p.x, *(p.x_range or (0.0,))) for p in measured), 1.5 * furthest) / scale * 1.06
    )  # a wild run must not press all flat
    least, top = 1.0 if quality.log else 2.0, 100.0 if quality.share else None
    beside = ticks([v for p in measured for v in (p.y, *(p.y_range or ()))], least, top, None if quality.log else 0.0)
    below = [right * step / 4 for step in range(5)]
    label = quality.label
    marks = [quality.tick(v) for v in beside]
    frame = Frame(below, beside, flipped=not quality.more_is_better, left=room_beside(marks))
    frame.axes([f"{v:,.0f}" if right >= 8 else f"{v:.2f}" for v in below], marks, unit, label)
    frame.note("better ↗" if speed else "↖ better", left=not speed)
    _frontier(frame, [next(p for p in measured if p.name == name) for name in front(content, along)], scale, speed)
    own = colors(content)
    for p in measured:
        _whiskers(frame, p, scale, f"t{own[p.name]}")
    for p in measured:
        value = f"{10**p.y:.1e}" if quality.log else f"{p.y:.2f}" + ("%" if quality.share else "")
        x = f"{format.significant(p.x)} {content['method']['unit']}" if speed else format.megabytes(p.x)
        frame.dot(p.x / scale, p.y, f"t{own[p.name]}", f"{p.name}: {x}, {label} {value}", p.name == content["recommended"])
    for p in sorted(measured, key=lambda p: p.name != content["recommended"]):
        frame.label(p.x / scale, p.y, f"★ {p.name}" if p.name == content["recommended"] else p.name)
    return frame.svg(f"{label} against {'speed' if speed else 'size'}")


def _frontier(frame: Frame, ordered: list[Point], scale: float, speed: bool) -> None:
    """Steps from edge to edge: whatever lies beyond them would be better than all that was measured."""
    corners: list[tuple[float, float]] = [(frame.left, frame.y(ordered[0].y))] if speed else [(frame.x(ordered[0].x / scale), frame.bottom)]
    for p in ordered:
        x, y = frame.x(p.x / scale), frame.y(p.y)
        corners += [(corners[-1][0], y) if speed else (x, corners[-1][1]), (x, y)]
    corners.append((corners[-1][0], frame.bottom) if speed else (frame.right, corners[-1][1]))
    for (a, b), (c, d) in itertools.pairwise(corners):
        frame.take((min(a, c) - 2, min(b, d) - 2, max(a, c) + 2, max(b, d) + 2))
    frame.parts.append(f'<path class="front" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}"/>')


def _whiskers(frame: Frame, p: Point, scale: float, color: str) -> None:
    x, y = frame.x(p.x / scale), frame.y(p.y)
    if p.y_range:
        a, b = (frame.y(v) for v in p.y_range)
        frame.take((x - 3, min(a, b), x + 3, max(a, b)))
        frame.parts.append(f'<path class="whisker {color}" d="M{x:.1f} {a:.1f}V{b:.1f}M{x - 4:.1f} {a:.1f}h8M{x - 4:.1f} {b:.1f}h8"/>')
    if p.x_range:
        a, b = (min(frame.x(v / scale), frame.right) for v in p.x_range)
        frame.take((a, y - 3, b, y + 3))
        frame.parts.append(f'<path class="whisker {color}" d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 3:.1f}v6M{b:.1f} {y - 3:.1f}v6"/>')


def explained(content: Mapping[str, Any]) -> list[str]:
    """Sentences on how to read both plots."""
    sentences = ["★ is the variant to deploy." if content["recommended"] else ""]
    for along in ("speed", "size"):
        names = front(content, along)
        if names:
            sentences.append(f"On the {along} frontier, where no other is better in both: {', '.join(names)}.")
    every = [*points(content, "speed"), *points(content, "size")]
    if any(p.y_range for p in every):
        sentences.append(f"Upright bars: 95% interval of the difference from {content['reference']}, by resampling the inputs.")
    if any(p.x_range for p in every):
        sentences.append(f"Level bars: 95% interval of the speed against {content['reference']}.")
    return [escape(text) for text in sentences if text]
