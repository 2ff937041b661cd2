"""The key/value cache of a decoder in 8 bits: GroupQueryAttention rounds what it appends, and reads the cache as it is.

Each channel of each key and value head has a scale of its own, found on calibration texts, so that a channel that is large takes no
precision from the others (per-channel scales of keys: Hooper et al. 2024, KVQuant; Liu et al. 2024, KIVI). Keys are rounded after their
positions have turned them. A position turns two channels into each other, and calibration texts show few of the angles that long ones have:
so the scales hold what was seen as it would be at all other positions too, as far as the model's longest text turns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import array_of, attribute, constant, dims, is_op, optional, source
from onnxport.graph.session import opened
from onnxport.runtime.bundle.interface import INPUT_IDS, PAST, PRESENT, SEQLENS

KERNEL = "GroupQueryAttention"
LARGEST = 127
ROOM = 1.1  # what scales hold, of the largest that texts showed: what a scale does not hold costs far more than coarser steps
ROOM_WITHOUT_TEXTS = 2.0  # the same where they were random ids alone
SILENT = 1 / 16  # of the middle channel of a head: no channel's scale is smaller, for one that was silent may speak on the next text
KEY, PAST_KEY, PAST_VALUE, COSINES, SINES, KEY_SCALE, VALUE_SCALE = 1, 3, 4, 7, 8, 12, 13  # places of inputs
MULTIPLE = 16  # of a head's size where a cache holds a window alone
PASSED = {"Reshape", "Transpose", "Identity", "Pad", "RMSNormalization", "SimplifiedLayerNormalization", "Add", "Mul", "Split"}
PRODUCTS = {"MatMul", "Gemm"}
Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Turns:
    """How positions turn the channels of a key, as the graph shows it.

    tables: names of the values that hold the cosines and sines of each pair, float32 [..., positions, pairs], one row a position from 0 on;
    None where the graph does not show how keys are turned. neighbours: the channels of a pair stand side by side; else each is as far into
    the first half as the other into the second.
    """

    tables: tuple[str, str] | None
    neighbours: bool = False

    def speeds(self, values: Mapping[str, np.ndarray]) -> Speeds | None:
        """What the values of the tables say; None where they say nothing."""
        if self.tables is None or any(table not in values for table in self.tables):
            return None
        cosines, sines = (values[table].reshape(-1, values[table].shape[-1])[:2].astype(np.float64) for table in self.tables)
        channels = np.arange(2 * cosines.shape[1])
        pairs = channels.reshape(-1, 2) if self.neighbours else channels.reshape(2, -1).T
        return Speeds(pairs, np.abs(np.arctan2(sines[1], cosines[1]))) if len(cosines) == 2 else None


@dataclass(frozen=True)
class Speeds:
    """pairs: int64 [n, 2], channels that are turned into each other. radians: from one position to the next, float64 [n]."""

    pairs: np.ndarray
    radians: np.ndarray


def check(models: Mapping[str, ir.Model]) -> None:
    """Check that a variant's graphs, role -> graph, can have caches of 8 bits.

    Raises:
        NotApplicable: the model does not generate, has an encoder, or an attention that is not GroupQueryAttention.
    """
    if "decoder" not in models:
        raise NotApplicable("--kv: this model does not generate, so it has no key/value cache; leave --kv out")
    if "encoder" in models:
        raise NotApplicable(
            "--kv: caches of 8 bits are for language models, and this model has an encoder beside its decoder; leave --kv out"
        )
    graph = models["decoder"].graph
    nodes = attentions(graph)
    caches = [value for value in graph.inputs if str(value.name).startswith(PAST)]
    held = {value for node in nodes for value in (source(node, PAST_KEY), source(node, PAST_VALUE))}
    if others := [str(value.name) for value in caches if value not in held]:
        raise NotApplicable(f"--kv: {others[0]} is read by another node than {KERNEL}, which alone takes a cache of 8 bits; leave --kv out")
    for node in nodes:
        size = _heads(node)[1]
        if attribute(node, "sliding_window_cache", 0) and size % MULTIPLE:
            raise NotApplicable(
                f"--kv: {KERNEL} keeps windows in 8 bits for heads of a multiple of {MULTIPLE}, here of {size}; leave --kv out"
            )


def attentions(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that keep a cache."""
    return [node for node in graph if node.op_type == KERNEL]


def quantized(model: ir.Model, turns: Mapping[str, Turns], feeds: Feeds, room: float, positions: int | None) -> ir.Model:
    """A copy of a decoder with caches of 8 bits: `past_*` and `present_*` are int8.

    model: fused, its weights as they will be, all else float32. turns: of the past keys, by name, see `turning`. feeds: inputs by name that
    scales are found on. room: what scales hold, of the largest that was seen. positions: of the longest text; None: there is no end.
    """
    return with_scales(model, peaks(model, turns, feeds, positions), room)


def with_scales(model: ir.Model, largest: Mapping[str, np.ndarray], room: float) -> ir.Model:
    """As `quantized`, from the largest magnitude of each channel by the name of its past, float32 [kv_heads, head_size]."""
    copy = model.clone()
    graph = copy.graph
    for node in attentions(graph):
        scales: list[ir.Value] = []
        for place in (PAST_KEY, PAST_VALUE):
            past = source(node, place)
            scale = (room / LARGEST * largest[str(past.name)]).astype(np.float32)
            scales.append(constant(graph, f"{past.name}/scale", scale[None, :, None, :]))
            for value in (past, node.outputs[place - PAST_KEY + 1]):
                value.type = ir.TensorType(ir.DataType.INT8)
        node.resize_inputs(max(len(node.inputs), VALUE_SCALE + 1))
        for place, scale_value in zip((KEY_SCALE, VALUE_SCALE), scales, strict=True):
            node.replace_input_with(place, scale_value)
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    return copy


def _heads(node: ir.Node) -> tuple[int, int]:
    """Key heads and their size."""
    shape = dims(source(node, PAST_KEY))
    assert shape is not None and isinstance(shape[1], int) and isinstance(shape[3], int), "caches of a fused decoder have known heads"
    return shape[1], shape[3]


def peaks(model: ir.Model, turns: Mapping[str, Turns], feeds: Feeds, positions: int | None) -> dict[str, np.ndarray]:
    """The largest magnitude of each channel by the name of its past, float32 [kv_heads, head_size], above 0."""
    names = [str(source(node, place).name) for node in attentions(model.graph) for place in (PAST_KEY, PAST_VALUE)]
    found: dict[str, np.ndarray] = {}
    speeds: dict[str, Speeds | None] = {}
    tables = {table for one in turns.values() for table in one.tables or ()}
    constants = {table: array for table in tables if (array := _constant(model.graph, table)) is not None}
    with opened({"decoder": model}, tables) as runners:
        runner = runners["decoder"]
        for feed in sorted(feeds, key=lambda feed: -_length_from_0(feed)):  # the first shows two positions at least
            wanted = [PRESENT + name.removeprefix(PAST) for name in names]
            wanted += [] if speeds else [table for table in sorted(tables) if table in runner.outputs]
            (values,) = runner.run([_with_room(feed, names)], wanted)
            speeds = speeds or {name: one.speeds(constants | values) for name, one in turns.items()}
            for name in names:
                cache = values[PRESENT + name.removeprefix(PAST)]
                for row, last in enumerate(feed[SEQLENS]):
                    entries = cache[row, :, : int(last) + 1]
                    size = np.abs(entries)
                    if name in turns:
                        size = _reached(entries, int(last) + 1 - entries.shape[1], speeds[name], positions)
                    found[name] = np.maximum(found.get(name, np.float32(0)), size.max(1))
    return {name: _above_zero(peak) for name, peak in found.items()}


def _length_from_0(feed: Mapping[str, np.ndarray]) -> int:
    """Ids of a feed whose cache begins empty, else 0."""
    length = int(feed[INPUT_IDS].shape[1])
    return length if int(feed[SEQLENS].max()) < length else 0


def _constant(graph: ir.Graph, name: str) -> np.ndarray | None:
    return array_of(graph.initializers[name]) if name in graph.initializers else None


def _reached(entries: np.ndarray, first: int, speeds: Speeds | None, positions: int | None) -> np.ndarray:
    """The largest magnitudes of keys float32 [kv_heads, entries, head_size] at all positions that they could be at. first: the position of
    the first entry."""
    size: np.ndarray = np.abs(entries)
    if speeds is None:
        return np.tile(np.sqrt(2) * size.max(-1, keepdims=True), (1, 1, size.shape[-1]))
    a, b = entries[..., speeds.pairs[:, 0]], entries[..., speeds.pairs[:, 1]]
    whole = np.full(len(speeds.pairs), np.inf) if positions is None else speeds.radians * max(positions - 1, 0)
    at_0 = np.arctan2(b, a) - np.arange(first, first + size.shape[1])[:, None] * speeds.radians
    for place, turned in ((0, 0.0), (1, np.pi / 2)):  # a is the cosine of the angle, b its sine
        size[..., speeds.pairs[:, place]] = np.hypot(a, b) * _largest_cosine(at_0 - turned, whole)
    return size


def _largest_cosine(angle: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The largest |cos| from `angle` to `angle + whole`."""
    ends = np.maximum(np.abs(np.cos(angle)), np.abs(np.cos(angle + np.minimum(whole, np.pi))))
    passes = np.floor((angle + np.minimum(whole, np.pi)) / np.pi) > np.floor(angle / np.pi)  # a multiple of pi lies between
    return np.asarray(np.where(passes, 1.0, ends))


def _above_zero(peak: np.ndarray) -> np.ndarray:
    middle = np.median(peak, axis=-1, keepdims=True)
    found = np.maximum(peak, np.where(middle > 0, SILENT * middle, peak.max(-1, keepdims=True)))
    return np.asarray(np.where(found > 0, found, 1), np.float32)


def _with_room(feed: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """A feed whose caches, where they begin empty, have room for all of its ids, so that a window keeps them all."""
    made, length = dict(feed), _length_from_0(feed)
    for name in names:
        past = feed[name]
        if past.shape[2] < length:
            past = np.zeros((*past.shape[:2], length, past.shape[3]), past.dtype)
        made[name] = past
    return made


def turning(model: ir.Model) -> dict[str, Turns]:
    """How positions turn the keys of a decoder, by the name of their past; keys that none turns are left out. model: float32, fused."""
    found = {str(source(node, PAST_KEY).name): _turns(node) for node in attentions(model.graph)}
    return {name: turns for name, turns in found.items() if turns is not None}


def _turns(node: ir.Node) -> Turns | None:
    if attribute(node, "do_rotary", 0):
        return _turned_by(node, COSINES, "rotary_interleaved")
    key = optional(node, KEY)
    left, seen = [] if key is None else [key], set[ir.Value]()
    while left:  # back to the products that make the key
        value = left.pop()
        producer = value.producer()
        if value in seen or producer is None or producer.op_type in PRODUCTS:
            continue
        seen.add(value)
        if producer.op_type == "RotaryEmbedding":  # ONNX Runtime's own reads positions before the tables
            return _turned_by(producer, 1 if is_op(producer, "RotaryEmbedding") else 2, "interleaved")
        if producer.op_type not in PASSED:
            return Turns(None)
        left += [given for given in producer.inputs if given is not None]
    return None


def _turned_by(node: ir.Node, cosines: int, neighbours: str) -> Turns:
    """What a node turns by the tables that are its inputs from `cosines` on."""
    tables = str(source(node, cosines).name), str(source(node, cosines + 1).name)
    return Turns(tables, bool(attribute(node, neighbours, 0)))
