"""Which scheme each weight gets: a small table of PyTorch names, made by hand, by a precision's recipe, or by a search.

A plan file is one JSON object that maps names to schemes, such as

    {"*": "int8-rows", "transformer.encoder.layers.0": "fp32", "*.linear2": "int4-blocks32-asym"}

A name is that of a weight, of a module (it stands for all weights in it), or a pattern with `*` and `?`. A weight's own name decides, else
the longest that fits it, so the order of the lines does not matter; a weight that no name fits stays in float32. The name `kv` is none of
these: with `"kv": "int8"` the decoder's key/value cache has 8 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from onnxport.errors import DataError, UsageError, one_line
from onnxport.files import MOST, read_regular

BLOCK_SIZES = (16, 32, 64, 128, 256)
_BLOCKS = re.compile(
    r"int(?P<bits>[48])-blocks(?P<block>\d+)?(?P<form>-asym|-min)?(?P<rotated>-rotated)?(?P<rest>-sorted|-hqq|-fit|-gptq)?"
)
KV, CACHES = "kv", ("int8",)  # the entry of a plan that is about the cache, and what it can be
DEFAULT_RANGE = "mse"  # of "int8-static": see docs/precisions.md for what each costs
GRAMMAR = (
    "fp32, fp16, bf16, int8-rows[-rotated][-reduced], int8-static[-minmax|-percentile|-entropy|-mse][-tensor][-reduced], "
    f"int8-blocksN or int4-blocksN (N: {', '.join(map(str, BLOCK_SIZES))}) with -asym or -min, -rotated, and -sorted, -hqq, -fit or -gptq"
)
_NUMBERS = re.compile(r"-(hqq|fit|gptq|minmax|percentile|entropy|mse)")
_ROWS = re.compile(r"int8-rows(?P<rotated>-rotated)?(?P<reduced>-reduced)?")
_STATIC = re.compile(r"int8-static(?:-(?P<range>minmax|percentile|entropy|mse))?(?P<tensor>-tensor)?(?P<reduced>-reduced)?")


@dataclass(frozen=True)
class Scheme:
    """What a weight becomes.

    kind: "fp32"; "half" (the whole graph is fp16 or bf16 but for what is fp32); "rows" (8 bit, one scale a column of weights and a row of
    activations); "static" (8 bit, scales of activations from calibration); "blocks" (one scale a block of `block` weights of an output,
    None: the largest that divides them). symmetric: no zero points. minimum: zero points, and a float that is added to all of a block.
    in_groups: blocks are made of the inputs that a weight shows to share a step, wherever they are. solver: how rounded values are found.
    range: how the range of activations is told. per_channel: scales of weights. reduced: weights of 7 bits, whose products cannot saturate
    without VNNI. rotated: runs of channels are rotated first, so that no channel stands out (see schemes.rotation).
    """

    name: str
    kind: str
    bits: int = 32
    block: int | None = None
    symmetric: bool = True
    minimum: bool = False
    in_groups: bool = False
    solver: str = "rtn"
    range: str = DEFAULT_RANGE
    per_channel: bool = True
    reduced: bool = False
    rotated: bool = False

    @property
    def plain(self) -> Scheme:
        """The same without rotation."""
        return scheme(self.name.replace("-rotated", ""))

    def is_like(self, other: Scheme) -> bool:
        """Whether both store weights alike, but for the size of blocks where one leaves that open."""
        alike = all(getattr(self, name) == getattr(other, name) for name in ("kind", "bits", "symmetric", "rotated"))
        return alike and len({self.block, other.block} - {None}) < 2

    @property
    def needs(self) -> str | None:
        """What must be known of a layer's input: "hessian", "square", "range" or nothing."""
        return {"gptq": "hessian", "fit": "square"}.get(self.solver, "range" if self.kind == "static" else None)

    @property
    def bytes_per_weight(self) -> float:
        """About how much storage a weight takes; scales of rows or blocks are left out."""
        return self.bits / 8

    @property
    def kernel(self) -> str:
        """The simplest scheme whose products take the same time: the name without what changes numbers alone."""
        return _NUMBERS.sub("", self.name)


FP32 = Scheme("fp32", "fp32")
HALVES = {"fp16": Scheme("fp16", "half", 16), "bf16": Scheme("bf16", "half", 16)}


def scheme(name: str) -> Scheme:
    """The scheme of a name. UsageError shows what is known."""
    name = name.removesuffix("+fp32")  # a use of the weight that cannot take the scheme stays as it is, here as there
    if name == "fp32":
        return FP32
    if name in HALVES:
        return HALVES[name]
    if match := _ROWS.fullmatch(name):
        return Scheme(name, "rows", 8, reduced=match["reduced"] is not None, rotated=match["rotated"] is not None)
    if match := _STATIC.fullmatch(name):
        return Scheme(
            name,
            "static",
            8,
            range=match["range"] or DEFAULT_RANGE,
            per_channel=match["tensor"] is None,
            reduced=match["reduced"] is not None,
        )
    if match := _BLOCKS.fullmatch(name):
        block = None if match["block"] is None else int(match["block"])
        if block is None or block in BLOCK_SIZES:
            form, rest = match["form"], (match["rest"] or "-rtn")[1:]
            solver = "rtn" if rest == "sorted" else rest
            rotated = match["rotated"] is not None
            if (form != "-min" or solver == "rtn") and not (rotated and (form == "-min" or rest == "sorted")):
                bits = int(match["bits"])
                return Scheme(name, "blocks", bits, block, form is None, form == "-min", rest == "sorted", solver, rotated=rotated)
    raise UsageError(f"{name!r:.60} is no scheme; expected {GRAMMAR}")


class Plan:
    """Names of weights and modules, or patterns of them, to schemes. kv: what the key/value cache becomes; None leaves it in the type of
    the graph."""

    def __init__(self, schemes: Mapping[str, str], kv: str | None = None) -> None:
        """UsageError: a scheme or the cache's is not known, or halves and integers are in one plan."""
        if kv is not None and kv not in CACHES:
            raise UsageError(f"{KV} is {kv!r:.60}, expected {' or '.join(CACHES)}; without it the cache stays as it is")
        self.schemes, self.kv = dict(schemes), kv
        self._parsed = {name: scheme(value) for name, value in self.schemes.items()}
        found = {s.name for s in self._parsed.values() if s.kind == "half"}
        others = [s.name for s in self._parsed.values() if s.kind not in ("half", "fp32")]
        if len(found) > 1 or (found and others):
            mixed = ", ".join(sorted({*found, *others}))
            raise UsageError(f"the plan mixes {mixed}: beside fp16 or bf16 a plan can hold fp32 only; choose one of them")
        if found and kv is not None:
            raise UsageError(f"the plan mixes {found.pop()} and a cache of {kv}: the kernel reads such a cache in float32; leave {KV} out")

    @property
    def half(self) -> str | None:
        """fp16 or bf16 where the whole graph becomes that, else None."""
        return next((s.name for s in self._parsed.values() if s.kind == "half"), None)

    @property
    def rounds_activations(self) -> bool:
        """Whether products read activations of 8 bit, by rows or by calibrated scales."""
        return any(s.kind in ("rows", "static") for s in self._parsed.values())

    @property
    def needs(self) -> set[str]:
        """What must be known of inputs of layers: see `Scheme.needs`."""
        return {s.needs for s in self._parsed.values() if s.needs is not None}

    def of(self, parameter: str) -> Scheme:
        """The scheme of a weight: by its own name, else by the longest that fits it."""
        if parameter in self._parsed:
            return self._parsed[parameter]
        fitting = [name for name in self._parsed if fits(name, parameter)]
        return self._parsed[max(fitting, key=lambda name: (len(name), name))] if fitting else FP32

    def check(self, parameters: Iterable[str]) -> None:
        """UsageError names every entry that fits none of a model's weights."""
        known = list(parameters)
        unknown = [name for name in self._parsed if name != "*" and not any(fits(name, parameter) for parameter in known)]
        if unknown:
            near = ", ".join(sorted(set(known))[:3])
            raise UsageError(f"the plan names {', '.join(unknown[:5])}, which the model has not; its weights are called {near}, ...")

    @classmethod
    def of_entries(cls, entries: Mapping[str, str]) -> Plan:
        """The plan of a file's entries, as `entries` gives them. UsageError: see `__init__`."""
        return cls({name: value for name, value in entries.items() if name != KV}, entries.get(KV))

    @property
    def entries(self) -> dict[str, str]:
        """What a file of the plan holds: schemes by name, and the cache's."""
        return self.schemes | ({} if self.kv is None else {KV: self.kv})

    def dumps(self) -> str:
        """The plan as a file's text."""
        return json.dumps(self.entries, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def fits(name: str, parameter: str) -> bool:
    """Whether a plan's name means a weight: its own name, that of a module it is in, or a pattern of either."""
    if "*" not in name and "?" not in name:  # quickly: a plan that was carried out has a name for each weight
        return parameter == name or parameter.startswith(f"{name}.")
    modules, pattern = parameter.split("."), name.replace("[", "[[]")  # parts of a weight are called `in_proj_weight[0]`
    return any(fnmatchcase(".".join(modules[:count]), pattern) for count in range(1, len(modules) + 1))


def read_plan(path: str | Path) -> Plan:
    """A plan file. DataError: it cannot be read or is no plan; UsageError: a scheme is not known."""
    path = Path(path)
    expected = 'expected a JSON object of names to schemes, such as {"*": "int8-rows"}'
    try:
        value = json.loads(read_regular(path, MOST).decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the plan cannot be read ({error.strerror or error}); {expected}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the plan is not valid JSON ({one_line(error)}); {expected}") from None
    if not isinstance(value, dict) or not value or not all(isinstance(v, str) for v in value.values()):
        raise DataError(f"{path}: found no plan; {expected}")
    try:
        return Plan.of_entries(value)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
