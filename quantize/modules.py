"""The modules of a model that a plan can treat one by one, and the products that each of them computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxport.graph.normalize import fold_constants
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import changeable
from onnxport.quantize.schemes.linear import linears, lookups


@dataclass(frozen=True)
class Use:
    """A product of `role`'s graph with a weight float32 [k, n]."""

    role: str
    k: int
    n: int
    transposed: bool
    biased: bool


@dataclass
class Group:
    """Weights that get one scheme together.

    name: the module's, or the weight's. values: how many numbers they are. tables: graphs that look rows up.
    """

    name: str
    parameters: set[str] = field(default_factory=set)
    uses: list[Use] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    values: int = 0

    @property
    def roles(self) -> set[str]:
        """The graphs that change with this group."""
        return {use.role for use in self.uses} | self.tables

    @property
    def narrowest(self) -> int:
        """The fewest inputs of a product, 0 without any."""
        return min((use.k for use in self.uses), default=0)


def module_of(parameter: str) -> str:
    """The module that a person sees: a part of a numbered layer (`decoder.layers.3.self_attn`), else the weight itself."""
    parts = parameter.split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if layer is None or layer + 2 > len(parts) - 1:
        return parameter
    end = layer + 2
    while end < len(parts) - 1 and parts[end].isdigit():  # decoder.block.0.layer.1
        end += 1
    return ".".join(parts[:end])


def groups(models: Mapping[str, ir.Model], module: Callable[[str], str] = module_of) -> list[Group]:
    """The groups of all graphs of a variant (role -> graph, float32), in graph order. module: what a weight is taken with.

    A weight with several uses is in one group. What a module's weights compute in different graphs, such as the queries of a decoder and
    the keys that an encoder makes for it, are groups of their own: they see different numbers of rows.
    """
    weights: dict[str, Group] = {}
    counted = set()

    def of(parameter: str, rows: int, columns: int) -> Group:
        group = weights.setdefault(parameter, Group(parameter, {parameter}))
        if (parameter, *sorted((rows, columns))) not in counted:  # a tied weight counts once
            group.values += rows * columns
        counted.add((parameter, *sorted((rows, columns))))
        return group

    for role, model in models.items():
        copy = model.clone()
        fold_constants(copy.graph)
        for linear in linears(copy.graph):
            if changeable(linear):
                k, n = linear.shape
                of(linear.parameter, k, n).uses.append(Use(role, k, n, linear.transposed, linear.bias is not None))
        for lookup in lookups(copy.graph):
            if changeable(lookup):
                of(lookup.parameter, *lookup.shape).tables.add(role)
    joined: dict[tuple[str, frozenset[str]], Group] = {}
    for parameter, weight in weights.items():
        own, place = module(parameter), frozenset(weight.roles)
        named = any(name == own for name, _ in joined)
        group = joined.setdefault((own, place), Group(f"{own} ({', '.join(sorted(place))})" if named else own))
        group.parameters |= weight.parameters
        group.uses += weight.uses
        group.tables |= weight.tables
        group.values += weight.values
    return list(joined.values())


def plan_of(chosen: Mapping[str, str], every: list[Group]) -> Plan:
    """The plan, by names of weights, that gives each named group its scheme."""
    return Plan({p: chosen.get(group.name, "fp32") for group in every for p in sorted(group.parameters)})
