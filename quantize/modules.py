"""The modules of a model that a plan can treat one by one, and the products and mixtures of experts that each of them computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxport.graph.edit import optional, sizes_of
from onnxport.graph.normalize import fold_constants
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import changeable
from onnxport.quantize.schemes.channel_scales import made_by_norm
from onnxport.quantize.schemes.linear import Linear, Lookup, lookups
from onnxport.quantize.schemes.mixtures import UP, Mixture, Product, products


@dataclass(frozen=True)
class ProductSizes:
    """A product with a weight float32 [k, n]. transposed: the weight is stored as [n, k]; biased: a sum follows."""

    k: int
    n: int
    transposed: bool
    biased: bool

    @property
    def key(self) -> str:
        """The sizes as a name."""
        return f"{self.k}x{self.n}{'t' if self.transposed else ''}{'b' if self.biased else ''}"


@dataclass(frozen=True)
class MixtureSizes:
    """A mixture of experts float32: up [experts, wide, hidden], down [experts, hidden, inner]. attributes: those of its node, by name."""

    experts: int
    hidden: int
    wide: int
    inner: int
    biased: bool
    attributes: tuple[tuple[str, int | float | str], ...]

    @property
    def top(self) -> int:
        """How many experts answer each token."""
        return int(dict(self.attributes)["k"])

    @property
    def key(self) -> str:
        """The sizes as a name."""
        return f"{self.top}of{self.experts}x{self.hidden}x{self.wide}x{self.inner}{'b' if self.biased else ''}"


@dataclass(frozen=True)
class Use:
    """What `role`'s graph computes with weights of a group. after_norm: on what a norm gives."""

    role: str
    sizes: ProductSizes | MixtureSizes
    after_norm: bool = False


@dataclass
class Group:
    """Weights that get one scheme together: of products and tables, or of mixtures.

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
        return min((use.sizes.k for use in self.uses if isinstance(use.sizes, ProductSizes)), default=0)

    @property
    def widths(self) -> set[int]:
        """How many inputs products of experts have; empty where the group is of no mixtures."""
        mixed = [use.sizes for use in self.uses if isinstance(use.sizes, MixtureSizes)]
        return {width for sizes in mixed for width in (sizes.hidden, sizes.inner)}


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


def own_module(part: Product | Lookup) -> str:
    """The module that a person sees a weight in; of a mixture its own, not the one that has its router too."""
    return part.name if isinstance(part, Mixture) else module_of(part.name)


def groups(models: Mapping[str, ir.Model], module: Callable[[Product | Lookup], str] = own_module) -> list[Group]:
    """The groups of all graphs of a variant (role -> graph, float32), in graph order. module: what a weight is taken with.

    A weight with several uses is in one group. What a module's weights compute in different graphs, such as the queries of a decoder and
    the keys that an encoder makes for it, are groups of their own: they see different numbers of rows. So are mixtures of experts, which
    have other kernels.
    """
    weights: dict[str, Group] = {}
    modules: dict[str, str] = {}
    counted = set[tuple[str, int]]()

    def of(part: Product | Lookup) -> Group:
        group = weights.setdefault(part.name, Group(part.name, set(part.parameters)))
        modules.setdefault(part.name, module(part))
        if (part.name, part.values) not in counted:  # a tied weight counts once
            group.values += part.values
        counted.add((part.name, part.values))
        return group

    for role, model in models.items():
        copy = model.clone()
        fold_constants(copy.graph)
        for product in products(copy.graph):
            if changeable(product):
                of(product).uses.append(Use(role, _sizes(product), isinstance(product, Linear) and made_by_norm(product.x)))
        for lookup in lookups(copy.graph):
            if changeable(lookup):
                of(lookup).tables.add(role)
    joined: dict[tuple[str, frozenset[str], bool], Group] = {}
    for name, weight in weights.items():
        own, place = modules[name], frozenset(weight.roles)
        named = any(other == own for other, *_ in joined)
        key = own, place, bool(weight.widths)
        group = joined.setdefault(key, Group(f"{own} ({', '.join(sorted(place))})" if named else own))
        group.parameters |= weight.parameters
        group.uses += weight.uses
        group.tables |= weight.tables
        group.values += weight.values
    return list(joined.values())


def _sizes(product: Product) -> ProductSizes | MixtureSizes:
    if isinstance(product, Mixture):
        (experts, wide, hidden), (_, _, inner) = map(sizes_of, product.tensors)
        attributes = tuple(sorted((name, attribute.value) for name, attribute in product.node.attributes.items()))
        return MixtureSizes(experts, hidden, wide, inner, optional(product.node, UP + 1) is not None, attributes)
    return ProductSizes(*product.shape, product.transposed, product.bias is not None)


def plan_of(chosen: Mapping[str, str], every: list[Group]) -> Plan:
    """The plan, by names of weights, that gives each named group its scheme."""
    return Plan({p: chosen.get(group.name, "fp32") for group in every for p in sorted(group.parameters)})
