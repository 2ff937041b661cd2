"""Heat maps of sensitivities: how much a variant loses when one module alone has a scheme."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxport.compare.report import format
from onnxport.compare.report.evidence.layer_errors import split_number

STEPS = 7  # of the colour scale
METRICS = {
    "kl": "change of the next token's probabilities against fp32's (KL divergence)",
    "kl_divergence": "change of the next token's probabilities against fp32's (KL divergence)",
    "squared_relative_error": "squared relative error of the output",
    "relative_error": "relative error of the output",
    "max_abs_diff": "largest difference of the output",
}
_LAYER = re.compile(r"(.*?(?:^|\.)[A-Za-z_]\w*\.\d+)(?:\.|$)(.*)")


@dataclass(frozen=True)
class Cell:
    """A module in a scheme. step: from 0 to STEPS - 1, None without a value.  chosen: by the variant's plan."""

    step: int | None
    text: str
    chosen: bool


@dataclass(frozen=True)
class Row:
    """A module. short: its name within its layer, in pieces between which a line may break.  cells: one a scheme."""

    module: str
    short: list[str]
    cells: list[Cell]


@dataclass(frozen=True)
class Layer:
    """The modules of a layer."""

    name: str
    rows: list[Row]


@dataclass(frozen=True)
class Worst:
    """One of the most sensitive modules, in the scheme that hurts it."""

    module: str
    scheme: str
    text: str


@dataclass(frozen=True)
class HeatMap:
    """names: of the variants that have these sensitivities.  low, high: the ends of the colour scale."""

    names: list[str]
    metric: str
    schemes: list[str]
    low: str
    high: str
    layers: list[Layer]
    worst: list[Worst]

    @property
    def planned(self) -> bool:
        """Whether the variant's plan chose any of the cells."""
        return any(cell.chosen for layer in self.layers for row in layer.rows for cell in row.cells)


def heat_maps(content: Mapping[str, Any]) -> list[HeatMap]:
    """A heat map for each variant that has sensitivities; variants with equal ones share it, framed by the first one's plan."""
    maps: list[HeatMap] = []
    drawn: list[Any] = []
    for name, evidence in content.get("evidence", {}).items():
        sensitivity = evidence.get("sensitivity") or {}
        if not sensitivity.get("modules"):
            continue
        if sensitivity in drawn:
            number = drawn.index(sensitivity)
            maps[number] = replace(maps[number], names=[*maps[number].names, name])
        else:
            drawn.append(sensitivity)
            maps.append(_heat_map(name, sensitivity, evidence.get("plan") or {}))
    return maps


def _heat_map(name: str, sensitivity: Mapping[str, Any], plan: Mapping[str, Any]) -> HeatMap:
    modules = sensitivity["modules"]
    schemes = list(dict.fromkeys(scheme for values in modules.values() for scheme in values))
    known = [(v, module, scheme) for module, values in modules.items() for scheme, v in values.items() if v is not None]
    positive = [v for v, _, _ in known if v > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    layers: dict[str, list[Row]] = {}
    for module in sorted(modules, key=_place(list(modules))):
        match, values = _LAYER.match(module), modules[module]
        layer, short = (match[1], match[2] or module) if match else ("outside of layers", module)
        cells = [Cell(_step(values.get(s), low, high), format.error(values.get(s)), _chosen(plan, module, s)) for s in schemes]
        layers.setdefault(layer, []).append(Row(module, re.split(r"(?<=[._])", short), cells))
    worst = [Worst(module, scheme, format.error(v)) for v, module, scheme in sorted(known, reverse=True)[:3]]
    metric = str(sensitivity.get("metric", "kl"))
    return HeatMap(
        [name],
        METRICS.get(metric, metric.replace("_", " ")),
        schemes,
        format.error(low),
        format.error(high),
        [Layer(layer, rows) for layer, rows in layers.items()],
        worst,
    )


def _step(value: float | None, low: float, high: float) -> int | None:
    """On a scale of powers of ten: sensitivities of modules lie decades apart."""
    if value is None:
        return None
    if value <= low or high <= low:
        return 0
    return min(STEPS - 1, int(STEPS * math.log(value / low) / math.log(high / low)))


def _chosen(plan: Mapping[str, Any], module: str, scheme: str) -> bool:
    """Whether the plan gave the module this scheme; a plan names weights, and the size of blocks with them.

    A module is all weights below its name; one that is measured in two graphs has the graph behind its name, `cross_attn (encoder)`.
    """
    name = module.partition(" (")[0]
    own = [str(plan[one]) for one in (name, f"{name}.weight") if one in plan] or [
        str(schemes) for weight, schemes in plan.items() if weight.startswith(f"{name}.")
    ]
    names = {one for schemes in own for one in schemes.split("+")}
    return any(one == scheme or re.fullmatch(re.escape(scheme) + r"\d+", one) for one in names)


def _place(modules: Sequence[str]) -> Callable[[str], tuple[Any, ...]]:
    """A key that sorts modules: outside of layers first, encoders next, then stacks as they come, layers by number."""
    order: dict[str, int] = {}
    for module in modules:
        order.setdefault(_layer(module)[0], len(order))

    def place(module: str) -> tuple[Any, ...]:
        stack, number = _layer(module)
        return bool(stack), "encoder" not in stack, order[stack], number

    return place


def _layer(module: str) -> tuple[str, int]:
    """The stack of layers that a module is in, and the layer's number; outside of layers the number is -1."""
    match = _LAYER.match(module)
    return (split_number(match[1]) if match else None) or ("", -1)
