"""Errors by layer as lines: how the error of a variant grows on its way through the model."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from onnxport.compare.report import format
from onnxport.compare.report.svg import LETTER, Frame, colors

_NUMBERED = re.compile(r"(.*?)\.(\d+)$")
_COMMON = frozenset({"transformer", "model", "layers", "layer", "block", "blocks", "h", "base_model"})  # no news in a label
_BELOW = 62  # room for the names of stacks


@dataclass(frozen=True)
class VariantErrors:
    """A variant's errors as texts, one a layer. color: its number in the palette."""

    name: str
    color: int
    cells: list[str]


@dataclass(frozen=True)
class LayerErrors:
    """svg: the plot, "" where nothing can be drawn.  layers: their short names.  rows: the same figures, for print."""

    svg: str
    layers: list[str]
    rows: list[VariantErrors]


def layer_errors(content: Mapping[str, Any]) -> LayerErrors | None:
    """The relative error of each layer's output, by variant; None where no variant has any."""
    order = list(content["variants"])
    entries = {name: e["layers"] for name, e in content.get("evidence", {}).items() if e.get("layers") and name in order}
    if not entries:
        return None
    layers = list(dict.fromkeys(entry["name"] for own in entries.values() for entry in own))
    errors = {name: {entry["name"]: entry["relative_error"] for entry in own} for name, own in entries.items()}
    rows = [
        VariantErrors(name, colors(content)[name], [format.error(values.get(layer)) for layer in layers]) for name, values in errors.items()
    ]
    return LayerErrors(_lines(layers, errors, colors(content)), [short(layer) for layer in layers], rows)


def split_number(layer: str) -> tuple[str, int] | None:
    """`transformer.encoder.layers`, 3 of `transformer.encoder.layers.3`; None where a name ends without a number."""
    match = _NUMBERED.match(layer)
    return (match[1], int(match[2])) if match else None


def short(layer: str) -> str:
    """`encoder 3` of `transformer.encoder.layers.3`."""
    numbered = split_number(layer)
    return f"{_stack(layer) or 'layer'} {numbered[1]}" if numbered else layer


def _stack(layer: str) -> str:
    numbered = split_number(layer)
    return " ".join(part for part in (numbered[0] if numbered else layer).split(".") if part not in _COMMON)


def _lines(layers: Sequence[str], errors: Mapping[str, Mapping[str, float | None]], own: Mapping[str, int]) -> str:
    """The plot as SVG; "" where there are fewer than two layers or no errors."""
    known = [v for values in errors.values() for v in values.values() if v]
    if not known or len(layers) < 2:
        return ""
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)
    decades = range(low, high + 1)
    right = min(200, 24 + round(LETTER * max(map(len, errors))))
    frame = Frame([0.0, len(layers) - 1.0], list(decades), bottom=_BELOW, right=right)
    for value in decades:
        y = frame.y(value)
        frame.parts.append(f'<line class="grid" x1="{frame.left}" y1="{y:.1f}" x2="{frame.right}" y2="{y:.1f}"/>')
        frame.text(frame.left - 7, y + 4, f"{10**value * 100:g}%", "end")
    _ticks(frame, layers)
    ends: dict[str, float] = {}
    for name, values in errors.items():
        color = f"t{own[name]}"
        placed = [(i, math.log10(v)) for i, layer in enumerate(layers) if (v := values.get(layer))]
        if not placed:
            continue
        path = "L".join(f"{frame.x(i):.1f} {frame.y(v):.1f}" for i, v in placed)
        frame.parts.append(f'<path class="line {color}" d="M{path}"/>')
        for i, v in placed:
            tip = escape(f"{name}, {layers[i]}: {format.error(values[layers[i]])}")
            frame.parts.append(f'<circle class="{color}" cx="{frame.x(i):.1f}" cy="{frame.y(v):.1f}" r="3.5"><title>{tip}</title></circle>')
        ends[name] = placed[-1][1]
    frame.labels_beside(ends)
    return frame.svg("Relative error of each layer's output")


def _ticks(frame: Frame, layers: Sequence[str]) -> None:
    """Numbers of layers, the names of their stacks below, and a line between two stacks."""
    begun, stack = 0, _stack(layers[0])
    every = max(1, math.ceil(len(layers) / 16))
    for i, layer in enumerate([*layers, "\0"]):
        if i == len(layers) or _stack(layer) != stack:
            frame.text((frame.x(begun) + frame.x(i - 1)) / 2, frame.bottom + 36, stack or "layer", "middle", name=True)
            if i < len(layers):
                x = (frame.x(i - 1) + frame.x(i)) / 2
                frame.parts.append(f'<line class="grid" x1="{x:.1f}" y1="{frame.top}" x2="{x:.1f}" y2="{frame.bottom + 40}"/>')
            begun, stack = i, _stack(layer)
        if i < len(layers) and (i - begun) % every == 0:
            numbered = split_number(layer)
            frame.text(frame.x(i), frame.bottom + 17, str(numbered[1]) if numbered else short(layer), "middle")
