"""Channel scales move what is hard to quantize from activations into weights, or the other way, and change no answer of the float graph.

Channel j of the input x of a product is divided by s_j, row j of every weight that reads x is multiplied by it. SmoothQuant (Xiao et al.
2022) does so for activations of 8 bits, AWQ (Lin et al. 2023) for weights of 4; both take s_j = x_j^a / w_j^b, of the usual or the largest
|x_j| and the largest |w_j|. Here a few such scales are tried for each input on real activations, and the one is kept whose products,
rounded as the plan will round them, come nearest to those in float32.

The division costs nothing where it goes into what makes x: the weight of a norm, another product whose result is a factor of x, or the
values of an attention. Elsewhere it is a node of its own, which has to pay for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import array_of, attribute, constant, dims, is_constant, is_op, new_node, only_use, optional, sizes_of, tensor_of
from onnxport.graph.lazy import derived
from onnxport.graph.normalize import fold_constants
from onnxport.quantize.activation_statistics import Sample, observe
from onnxport.quantize.plan import FP32, Plan, Scheme
from onnxport.quantize.schemes.apply import chosen
from onnxport.quantize.schemes.blocks.blockwise import block_size
from onnxport.quantize.schemes.blocks.stored import carrying_scheme
from onnxport.quantize.schemes.finished import Finished
from onnxport.quantize.schemes.int8 import FULL, REDUCED, Sides, rounded, sides_of
from onnxport.quantize.schemes.linear import Linear, linears
from onnxport.quantize.schemes.rotation import rotated

Feeds = Sequence[Mapping[str, np.ndarray]]
EXPONENTS = (0.3, 0.45, 0.6)  # a: how far activations are evened out
PEAKS = (2.0, 3.0, 4.0)  # times the median of the channels' largest magnitudes that no channel is above, where one scale is for all rows
ROWS = 96  # of an input, that scales are tried on
COLUMNS = 512  # of a weight: more tell little more
PAYS = 0.8  # a node of its own has to leave at most this share of the error
SMALLEST = 1e-5
SCALE = "scale"
NORMS = {  # op → places of its weights, of each channel
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
ATTENTIONS = ("GroupQueryAttention", "MultiHeadAttention")


@dataclass
class Inputs:
    """Some rows of a value, and of each channel the mean magnitude and the limits over all."""

    some: Sample = field(default_factory=lambda: Sample(2 * ROWS))
    total: np.ndarray | float = 0.0
    low: np.ndarray | float = 0.0
    high: np.ndarray | float = 0.0
    count: int = 0

    def add(self, rows: np.ndarray) -> None:
        """As activation_statistics.Collector."""
        self.total = self.total + np.abs(rows).sum(0, dtype=np.float64)
        self.low = np.minimum(self.low, rows.min(0, initial=0))
        self.high = np.maximum(self.high, rows.max(0, initial=0))
        self.count += len(rows)
        self.some.add(rows)

    def sample(self) -> np.ndarray:
        """float32 [at most ROWS, K]."""
        rows = np.stack(self.some.kept)
        found: np.ndarray = rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)]
        return found

    @property
    def largest(self) -> np.ndarray:
        """The largest |x| of each channel, [K]."""
        found: np.ndarray = np.maximum(-np.asarray(self.low), self.high)
        return found

    def limits(self, scale: np.ndarray | float = 1.0) -> tuple[float, float]:
        """The least and the greatest value of all channels divided by `scale`."""
        return float(np.min(self.low / scale)), float(np.max(self.high / scale))

    def magnitudes(self) -> Iterator[np.ndarray]:
        """The usual and the largest |x| of each channel, float32 [K]; none counts as much smaller than half of those that were met: a unit
        that was silent may speak on the next text."""
        for found in (np.asarray(self.total) / max(self.count, 1), self.largest):
            met = found[found > 0]
            floor = max(float(np.median(met)) / 10 if met.size else 0.0, SMALLEST)
            yield np.maximum(found, floor).astype(np.float32)


@dataclass(frozen=True)
class Reading:
    """How an input of a product can be rounded. sides: by rows; limits: of all values, by one scale."""

    sides: Sides
    limits: tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A weight, the input `index` of a node: its places from `start` on along `axis` make the channels of x."""

    node: ir.Node
    index: int
    start: int
    count: int
    axis: int = -1


@dataclass(frozen=True)
class Maker:
    """What makes an input and can take a division. heads: (key and value heads, heads that share each, size), of an attention's result."""

    parts: tuple[Part, ...]
    heads: tuple[int, int, int] | None = None

    def shared(self, magnitudes: np.ndarray) -> np.ndarray:
        """[K] → the largest of those channels that one place of the weight makes."""
        if self.heads is None:
            return magnitudes
        kv, group, size = self.heads
        return np.broadcast_to(magnitudes.reshape(kv, group, size).max(1, keepdims=True), (kv, group, size)).reshape(-1)

    def divide(self, graph: ir.Graph, scale: np.ndarray) -> None:
        """Puts 1 / scale [K] into the weights."""
        if self.heads is not None:
            kv, group, size = self.heads
            scale = scale.reshape(kv, group, size)[:, 0].reshape(-1)
        for part in self.parts:
            factor = np.ones(_width(part), np.float32)
            factor[part.start : part.start + part.count] = 1 / scale
            _multiply(graph, part.node, part.index, factor if part.axis == -1 else factor[:, None])


class ChannelScales:
    """The scales of a graph's channels, which plans share as far as they say the same.

    model: float32; feeds: inputs by name. finished: keeps scales, and has those that were found before for the same graph and inputs.
    """

    def __init__(self, model: ir.Model, feeds: Feeds, finished: Finished | None = None) -> None:
        self._model, self._feeds, self._finished = model, feeds, finished
        self._seen: dict[str, Inputs] = {}
        self._best: dict[str, np.ndarray | None] = {}
        self._losses: dict[str, float] = {}

    def scaled(self, plan: Plan) -> ir.Model:
        """A copy whose products read scaled channels, as far as `plan` loses less so.

        Products of an input that the plan leaves in float32 stay, and so do those whose weight is looked up or read elsewhere, as tied
        embeddings are, or holds a checkpoint's own codes.
        """
        copy = self._model.clone()
        groups, keys = self._groups(copy, plan)
        for x, group in groups.items():
            self._scale(copy.graph, x, group, keys[x])
        return copy

    def losses(self, plan: Plan) -> dict[str, float]:
        """Name of an input → what a product that reads it loses by `plan` on the best scale: the mean square of its error over its own."""
        copy = self._model.clone()
        groups, keys = self._groups(copy, plan)
        self._observe(copy, [x for x, key in keys.items() if key not in self._losses])
        for x, group in groups.items():
            if keys[x] not in self._losses:
                found, loss = self._found(x, group)
                self._keep(keys[x], found)
                self._losses[keys[x]] = loss / len(group)
        return {str(x.name): self._losses[key] for x, key in keys.items()}

    def _groups(self, copy: ir.Model, plan: Plan) -> tuple[dict[ir.Value, list[tuple[Linear, Scheme]]], dict[ir.Value, str]]:
        """The products of each input that can be scaled, with their schemes, and what tells them from others; inputs are observed."""
        fold_constants(copy.graph)
        groups: dict[ir.Value, list[tuple[Linear, Scheme]]] = {}
        for linear in linears(copy.graph):
            groups.setdefault(linear.x, []).append((linear, chosen(plan, linear)))
        groups = {
            x: group for x, group in groups.items() if all(_fits(*one) for one in group) and any(s.kind != FP32.kind for _, s in group)
        }
        keys = {x: " ".join([str(x.name), *(f"{scheme.name} {linear.key}" for linear, scheme in group)]) for x, group in groups.items()}
        known = [self._take_over(key) for key in keys.values()]  # each is looked for, for it would be found again
        if not all(known):
            self._observe(copy, groups)
        return groups, keys

    def _observe(self, copy: ir.Model, values: Iterable[ir.Value]) -> None:
        """Sees values that were not seen yet."""
        new = {str(x.name): Inputs() for x in values if str(x.name) not in self._seen}
        observe(copy, {name: [inputs] for name, inputs in new.items()}, self._feeds if new else ())
        self._seen |= new

    def _keep(self, key: str, found: np.ndarray | None) -> None:
        """Remembers the scale of a group, also for an export that goes on."""
        if self._finished is not None and key not in self._best:
            self._finished.keep(key, {} if found is None else {SCALE: found})
        self._best[key] = found

    def _take_over(self, key: str) -> bool:
        """Whether the scale of a group is known, also from before this export began."""
        if key not in self._best and self._finished is not None and (arrays := self._finished.get(key)) is not None:
            self._best[key] = arrays.get(SCALE)
        return key in self._best

    def _found(self, x: ir.Value, group: Sequence[tuple[Linear, Scheme]]) -> tuple[np.ndarray | None, float]:
        inputs = self._seen[str(x.name)]
        return _best(group, inputs, sides_of(x), _maker_of(x, group)) if inputs.count else (None, 0.0)

    def _scale(self, graph: ir.Graph, x: ir.Value, group: Sequence[tuple[Linear, Scheme]], key: str) -> None:
        maker = _maker_of(x, group)
        if key not in self._best:
            self._keep(key, self._found(x, group)[0])
        best = self._best[key]
        if best is None:
            return
        if maker is not None:
            maker.divide(graph, best)
        else:
            _insert(graph, x, group, best)
        for linear, _ in group:
            _multiply(graph, linear.node, 1, best if linear.transposed else best[:, None])


def _fits(linear: Linear, scheme: Scheme) -> bool:
    """Whether a weight can be multiplied: nothing else reads it, and it is not codes of a checkpoint, which blocks carry as they are."""
    weight = linear.node.inputs[1]
    own = weight is not None and weight.is_initializer() and only_use(weight)
    return scheme.kind in PRODUCTS and own and not (scheme.kind == "blocks" and carrying_scheme(linear) is not None)


def _best(group: Sequence[tuple[Linear, Scheme]], inputs: Inputs, sides: Sides, maker: Maker | None) -> tuple[np.ndarray | None, float]:
    """The scale float32 [K] whose rounded products come nearest to those in float32, and how near; None where none is worth it."""
    rows = inputs.sample()
    some, largest = [], np.zeros(group[0][0].shape[0], np.float32)
    for linear, scheme in group:
        weight = linear.weight
        some.append((_columns(weight), PRODUCTS[scheme.kind], scheme))
        largest = np.maximum(largest, _largest(weight))
    largest = np.maximum(largest, SMALLEST)
    right = [rows @ weight for weight, _, _ in some]

    def error(scale: np.ndarray | None) -> float:
        """Mean over rows of the squared error over the square of the products; rows that are small beside others count less."""
        total, factor = 0.0, np.ones(1, np.float32) if scale is None else scale
        reading = Reading(sides.scaled_by(float(1 / factor.min())), inputs.limits(factor))
        for (weight, product, scheme), y in zip(some, right, strict=True):
            pair = (rows, weight) if scale is None else (rows / scale, weight * scale[:, None])
            found = product(*_read(pair, scheme), scheme, reading)
            power = np.square(y).sum(1)
            total += float((np.square(found - y).sum(1) / (power + np.median(power) + 1e-30)).mean())
        return total

    plain = error(None)
    best, least = _least(error, _evened(inputs, largest, maker), None, plain * (1 if maker is not None else PAYS))
    if any(scheme.kind == "static" for _, scheme in group):
        best, least = _least(error, _without_peaks(inputs, np.ones_like(largest) if best is None else best, maker), best, least)
    return best, plain if best is None else least


def _least(
    error: Callable[[np.ndarray], float], scales: Iterable[np.ndarray], best: np.ndarray | None, least: float
) -> tuple[np.ndarray | None, float]:
    """The scale of the least error below `least`, which is that of `best`, and that error."""
    for scale in scales:
        if (found := error(scale)) < least:
            best, least = scale, found
    return best, least


def _evened(inputs: Inputs, largest: np.ndarray, maker: Maker | None) -> Iterator[np.ndarray]:
    """Scales by powers of the activations' magnitudes and of the weights' largest."""
    for magnitude in inputs.magnitudes():
        for exponent in EXPONENTS:
            for other in (0.0, 1 - exponent):
                yield _centred(magnitude**exponent / largest**other, maker)


def _without_peaks(inputs: Inputs, scale: np.ndarray, maker: Maker | None) -> Iterator[np.ndarray]:
    """A scale with more for the few channels that are far above the others."""
    peaks = inputs.largest / scale
    for most in PEAKS:
        yield _centred(scale * np.maximum(peaks / (most * max(float(np.median(peaks)), SMALLEST)), 1), maker)


def _centred(scale: np.ndarray, maker: Maker | None) -> np.ndarray:
    """A scale that what makes the channels can take, around 1."""
    scale = scale if maker is None else maker.shared(scale)
    centred: np.ndarray = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return centred


def _read(pair: tuple[np.ndarray, np.ndarray], scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """The rows [M, K] and the weight [K, N] of a product as the scheme rounds them."""
    rows, weight = pair
    return (rotated(rows), rotated(np.ascontiguousarray(weight.T)).T) if scheme.rotated else pair


def _largest(weight: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row of [K, N], without a copy of all."""
    found: np.ndarray = np.maximum(weight.max(1), -weight.min(1))
    return found


def _columns(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight[:, :: max(1, weight.shape[1] // COLUMNS)])


def _insert(graph: ir.Graph, x: ir.Value, group: Sequence[tuple[Linear, Scheme]], scale: np.ndarray) -> None:
    like = ir.Value(name=f"{x.name}/smooth", type=x.type, shape=x.shape)
    factor = constant(graph, f"{x.name}/smoothing", 1 / scale)
    even = new_node(graph, group[0][0].node, "Mul", [x, factor], {}, [like], domain="").outputs[0]
    for linear, _ in group:
        linear.node.replace_input_with(0, even)


def _width(part: Part) -> int:
    return _shape(part.node.inputs[part.index])[part.axis]


def _multiply(graph: ir.Graph, node: ir.Node, index: int, factor: np.ndarray) -> None:
    """A weight of its own for this node, times `factor`, under the same name: a plan knows it by that."""
    old = node.inputs[index]
    tensor = tensor_of(old)
    assert old is not None and tensor is not None
    new = constant(graph, f"{old.name}/scaled", derived(tensor, lambda array: np.ascontiguousarray(array * factor)))
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    node.replace_input_with(index, new)
    if not old.uses():
        name = str(old.name)
        del graph.initializers[name]
        new.name = name


def _maker_of(x: ir.Value, group: Sequence[tuple[Linear, Scheme]]) -> Maker | None:
    """`_maker` of an input that nothing but its products reads."""
    alone = all(use.node in {linear.node for linear, _ in group} for use in x.uses()) and not x.is_graph_output()
    return _maker(x, group[0][0].shape[0]) if alone else None


def _maker(x: ir.Value, width: int) -> Maker | None:
    """What makes x [..., width] and can divide its channels, each by a number of its own; None where there is nothing of the kind."""
    found = _any_maker(x)
    places = 0 if found is None else found.parts[0].count * (1 if found.heads is None else found.heads[1])
    return found if places == width else None


def made_by_norm(x: ir.Value) -> bool:
    """Whether a value is what a norm gives."""
    node = x.producer()
    return node is not None and node.op_type in NORMS and node.outputs[0] is x


def _any_maker(x: ir.Value) -> Maker | None:
    node = x.producer()
    if node is None:
        return None
    if made_by_norm(x):
        places = [i for i in NORMS[node.op_type] if optional(node, i) is not None]
        own = all(_own(node.inputs[i]) for i in places) and len({_last(node, i) for i in places}) == 1
        return Maker(tuple(Part(node, i, 0, _last(node, i)) for i in places)) if own else None
    if node.op_type in ATTENTIONS and node.outputs[0] is x:
        return _values(node)
    if is_op(node, "Mul"):
        made = (_product(value) for value in node.inputs if value is not None and only_use(value))
        return next((Maker(parts) for parts in made if parts is not None), None)
    if is_op(node, "Relu"):  # of a positive multiple it is the same multiple
        value = node.inputs[0]
        parts = _product(value) if value is not None and only_use(value) else None
        return None if parts is None else Maker(parts)
    return None


def _own(weight: ir.Value | None) -> bool:
    return weight is not None and weight.is_initializer() and only_use(weight)


def _last(node: ir.Node, index: int) -> int:
    shape = _shape(node.inputs[index])
    return shape[-1] if shape else 1


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Of a constant, which is not read."""
    tensor = tensor_of(value)
    assert tensor is not None
    return sizes_of(tensor)


def _product(value: ir.Value) -> tuple[Part, ...] | None:
    """The weight and the bias of the product whose result, or a part of it, a value is."""
    whole, start, count = _part(value)
    bias: tuple[tuple[ir.Node, int], ...] = ()
    node = None if whole is None else whole.producer()
    if node is not None and is_op(node, "Add"):
        sums = [i for i in (0, 1) if is_constant(node.inputs[i])]
        product = node.inputs[1 - sums[0]] if len(sums) == 1 else None
        if product is None or not only_use(product):
            return None
        bias, node = ((node, sums[0]),), product.producer()
    linear = None if node is None else next(linears([node]), None)
    if node is None or linear is None:
        return None
    if is_op(node, "Gemm") and optional(node, 2) is not None:
        bias = (*bias, (node, 2))
    width = linear.shape[1]
    owned = all(_own(one.inputs[i]) for one, i in ((node, 1), *bias))
    if not owned or any(_last(one, i) != width for one, i in bias):
        return None
    count = width if count is None else count
    axis = 0 if linear.transposed else -1
    return (Part(node, 1, start, count, axis), *(Part(one, i, start, count) for one, i in bias))


def _part(value: ir.Value) -> tuple[ir.Value | None, int, int | None]:
    """What a value is a part of, from which place on, and how many; the value itself where it is whole, None where that is not known."""
    node = value.producer()
    if node is None or not is_op(node, "Split") or attribute(node, "axis", 0) != -1:
        return value, 0, None
    made, sizes = node.inputs[0], _sizes(node)
    if made is None or not only_use(made) or sizes is None:
        return None, 0, None
    place = list(node.outputs).index(value)
    return made, sum(sizes[:place]), sizes[place]


def _sizes(split: ir.Node) -> list[int] | None:
    """How wide each part is; None where the graph does not say."""
    given, whole = array_of(optional(split, 1)), dims(split.inputs[0]) if split.inputs[0] is not None else None
    if given is not None:
        return [int(size) for size in given]
    width, count = whole[-1] if whole else None, len(split.outputs)
    return [width // count] * count if isinstance(width, int) and width % count == 0 else None


def _values(node: ir.Node) -> Maker | None:
    """The products that make the values of an attention, as far as one product makes them alone."""
    if node.op_type == "MultiHeadAttention" and optional(node, 3) is not None:  # a bias that the kernel adds to the values itself
        return None
    heads = int(attribute(node, "num_heads", 0))
    kv = int(attribute(node, "kv_num_heads", heads))
    packed = optional(node, 1) is None and optional(node, 2) is None
    value = optional(node, 0 if packed else 2)
    parts = _product(value) if value is not None and only_use(value) and heads and kv else None
    if parts is None:
        return None
    width = parts[0].count
    if packed:
        size = width // (heads + 2 * kv)
        start = parts[0].start + (heads + kv) * size
        parts = tuple(Part(part.node, part.index, start, kv * size, part.axis) for part in parts)
    else:
        size = width // kv
    return Maker(parts, (kv, heads // kv, size)) if size * kv == parts[0].count else None


def _by_rows(x: np.ndarray, weight: np.ndarray, scheme: Scheme, reading: Reading) -> np.ndarray:
    sides = Sides() if scheme.rotated else reading.sides
    product: np.ndarray = sides.rounded(x) @ _rounded_columns(weight, scheme)
    return product


def _by_range(x: np.ndarray, weight: np.ndarray, scheme: Scheme, reading: Reading) -> np.ndarray:
    product: np.ndarray = rounded(x, reading.limits) @ _rounded_columns(weight, scheme)
    return product


def _rounded_columns(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    step = np.maximum(np.abs(weight).max(0, keepdims=True), 1e-30) / (REDUCED if scheme.reduced else FULL)
    found: np.ndarray = np.rint(weight / step) * step
    return found


def _in_blocks(x: np.ndarray, weight: np.ndarray, scheme: Scheme, reading: Reading) -> np.ndarray:
    k, n = weight.shape
    size = block_size(k, scheme.block)
    padding = -k % size
    blocks = np.pad(weight, ((0, padding), (0, 0))).reshape(-1, size, n)
    activations = np.pad(x, ((0, 0), (0, padding))).reshape(len(x), -1, size)
    most = (1 << scheme.bits) - 1
    if scheme.symmetric:
        large = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        step = -large / (most // 2 + 1) if scheme.bits == 4 else np.abs(large) / 127
        step = np.where(step == 0, 1, step)
        values = np.rint(blocks / step).clip(-(most // 2 + 1), most // 2) * step
    else:
        low, high = blocks.min(1, keepdims=True).clip(None, 0), blocks.max(1, keepdims=True).clip(0, None)
        step = np.where(high > low, (high - low) / most, 1)
        zero = np.rint(-low / step)
        values = ((np.rint(blocks / step) + zero).clip(0, most) - zero) * step
    product: np.ndarray = Sides().rounded(activations).reshape(len(x), -1) @ values.reshape(-1, n).astype(np.float32)
    return product


def _exact(x: np.ndarray, weight: np.ndarray, scheme: Scheme, reading: Reading) -> np.ndarray:
    product: np.ndarray = x @ weight
    return product


# Kind of a scheme → its product, x [M, K] and weight [K, N] → [M, N], with the same rounding; quick, not exact to the bit.
PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray, Scheme, Reading], np.ndarray]] = {
    "rows": _by_rows,
    "static": _by_range,
    "blocks": _in_blocks,
    "fp32": _exact,
}
