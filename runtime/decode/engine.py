"""The engine of a variant that generates: its sessions, and what the decoding loop needs to know of their graphs."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport.errors import BundleError, OnnxportError, TextError, UsageError
from onnxport.runtime.arrays import padded
from onnxport.runtime.bundle import interface
from onnxport.runtime.bundle.manifest import MOST_OF_A_HEAD, GenerationConfig, Variant
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.decode.cache import Cache, CrossCache, DeviceCache, HostCache, buffer_shapes, rounded
from onnxport.runtime.decode.guess_policy import PassCosts
from onnxport.runtime.decode.prompt_cache import PromptCache
from onnxport.runtime.sessions import DEVICES, NUMPY_TYPES, Sessions, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


class Positions:
    """Counts the positions that encoder and decoder computed and those that were of use: not padding, not of a finished row."""

    def __init__(self) -> None:
        self.computed = self.used = 0

    def add(self, computed: int, used: int) -> None:
        """Count one run; a number lost between two threads does no harm."""
        self.computed += computed
        self.used += used

    @property
    def padding(self) -> float:
        """Share of the computed positions that were of no use, 0 to 1."""
        return 1 - self.used / self.computed if self.computed else 0.0


@dataclass(frozen=True)
class BatchBounds:
    """The most that decodes together in one batch: rows (texts times beams), and bytes of their keys and values; None for no bound.

    A request that is over a bound by itself is answered alone.
    """

    rows: int | None = None
    cache_bytes: int | None = None


NO_BOUNDS = BatchBounds()


class Engine:
    """Encoder, decoder and search sessions. Sessions may be run from many threads; search graphs are loaded when first used.

    prompt_cache: bytes of keys and values of prompts that are kept, None for none. UsageError where prompts cannot be kept. bounds: of
    each batch.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        sessions: Sessions,
        prompt_cache: int | None = None,
        bounds: BatchBounds = NO_BOUNDS,
    ) -> None:
        if bundle.generation is None:
            raise BundleError(f"{bundle.path}: no generation section, expected a model that generates; use run or encode")
        self.config: GenerationConfig = bundle.generation.with_whole_caches() if variant.whole_caches else bundle.generation
        self.device = DEVICES[sessions.device]
        self.positions, self.pass_costs, self.bounds = Positions(), PassCosts(), bounds
        self._bundle, self._sessions = bundle, sessions
        self._search: dict[str, onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()
        roles = ("encoder", "decoder") if self.config.kind == "seq2seq" else ("decoder",)
        absent = [r for r in roles if r not in variant.graphs]
        if absent:
            raise BundleError(
                f"{bundle.path}: variant {variant.name} has no {absent[0]} graph, expected {', '.join(roles)}; export the model again"
            )
        # Only the decoder's workers go on spinning between runs: an encoder's would take cores from every following step.
        self.encoder = sessions.open(bundle.file(variant.graphs["encoder"]), steady=False) if "encoder" in roles else None
        self.decoder = sessions.open(bundle.file(variant.graphs["decoder"]))
        self.inputs = {i.name: i for i in [*self.decoder.get_inputs(), *self.decoder.get_overridable_initializers()]}
        self._check_decoder(variant)
        self._check_sizes(variant)
        self._check_encoder(variant)
        self.past, self.present = (interface.cache_names(prefix, self.config.layers) for prefix in (interface.PAST, interface.PRESENT))
        found = self.inputs[self.past[0]].type
        if found not in NUMPY_TYPES:
            raise BundleError(f"variant {variant.name}: its cache is {found}, expected a type that NumPy has; choose another precision")
        self.cache_type = np.dtype(NUMPY_TYPES[found])
        self.prompt_cache = None if prompt_cache is None else self._new_prompt_cache(prompt_cache)

    def _new_prompt_cache(self, most: int) -> PromptCache:
        if self.encoder is not None:
            raise UsageError("prefix_cache_mb is for language models; this bundle has an encoder, so its prompts are sources")
        if not self.device.host_memory:
            raise UsageError(f"prefix_cache_mb needs a cache in host memory, asked for device {self.device.name}; use device cpu")
        if interface.QUERY_LENGTHS not in self.inputs:
            raise UsageError(
                f"prefix_cache_mb: this decoder cannot go on behind kept entries, it has no input {interface.QUERY_LENGTHS}; "
                "export the model again"
            )
        return PromptCache(most, self.shortest_window)

    def _check_decoder(self, variant: Variant) -> None:
        absent = [name for name in interface.required_inputs(self.config.layers) if name not in self.inputs]
        if absent:
            raise BundleError(
                f"variant {variant.name}: its decoder has no input {absent[0]}, expected a fused decoder; export the model again"
            )

    def _check_sizes(self, variant: Variant) -> None:
        """Hold the manifest's sizes against the graph's, before memory is asked for by them."""
        config = self.config
        caches = [value for name, value in self.inputs.items() if name.startswith(interface.PAST)]
        logits = [value for value in self.decoder.get_outputs() if value.name == interface.LOGITS]
        if len(caches) != 2 * config.layers:
            raise BundleError(
                f"variant {variant.name}: its decoder has {len(caches)} caches, expected 2 for each of {config.layers} layers; export again"
            )
        sizes_of = {
            name: (None, layer.kv_heads, None, layer.head_size)
            for i, layer in enumerate(config.layer_caches)
            for name in interface.cache_names(interface.PAST, config.layers)[2 * i : 2 * i + 2]
        }
        wanted: list[tuple[Any, tuple[int | None, ...]]] = [(value, sizes_of[value.name]) for value in caches if value.name in sizes_of]
        wanted += [(value, (None, config.vocab_size)) for value in logits]
        for value, sizes in wanted:
            if len(value.shape) != len(sizes) or any(
                isinstance(a, int) and b not in (None, a) for a, b in zip(value.shape, sizes, strict=True)
            ):
                shown = ", ".join("any" if size is None else str(size) for size in sizes)
                raise BundleError(
                    f"variant {variant.name}: the decoder's {value.name} is {list(value.shape)}, bundle.json says [{shown}]; export again"
                )

    def _check_encoder(self, variant: Variant) -> None:
        """The encoder reads what it is given, and says how many heads its keys and values have, and of which size and type."""
        known = interface.source(np.zeros((1, 1), np.int64))
        if unknown := [] if self.encoder is None else [value.name for value in self.encoder.get_inputs() if value.name not in known]:
            raise BundleError(f"variant {variant.name}: its encoder reads {unknown[0]!r}, expected {' and '.join(known)}; export again")
        for value in [] if self.encoder is None else self.encoder.get_outputs():
            fixed = value.shape[1::2]
            sound = (
                value.type in NUMPY_TYPES
                and len(value.shape) == 4
                and all(isinstance(size, int) and 0 < size <= MOST_OF_A_HEAD for size in fixed)
            )
            if value.name.startswith(interface.CROSS) and not sound:
                raise BundleError(
                    f"variant {variant.name}: the encoder's {value.name} is {value.type} {value.shape}, expected [any, heads, any, size]"
                    "; export again"
                )

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.config.vocab_size

    @property
    def admits_while_running(self) -> bool:
        """Whether inputs can join a batch that runs: in host memory, where rows can be moved."""
        return self.device.host_memory

    @property
    def shortest_window(self) -> int | None:
        """Entries of the smallest buffer that keeps the newest alone; None where all layers keep every entry."""
        return min((layer.window for layer in self.config.layer_caches if layer.window is not None), default=None)

    @property
    def checks_guesses(self) -> bool:
        """Whether the decoder gives the logits of several positions of a row at once."""
        return interface.LOGITS_ROWS in self.inputs

    @property
    def masks_alone(self) -> bool:
        """Whether there is a search graph for masks alone; older bundles have none."""
        return interface.MASK in self._bundle.search

    @property
    def takes_bias(self) -> bool:
        """Whether numbers can be added to the logits of single ids."""
        return interface.BIAS in optional_inputs(self.search("process"))

    def takes_several(self, rows: int) -> bool:
        """Whether a run of so many rows takes several new ids behind what its cache holds."""
        return rows == 1 or interface.QUERY_LENGTHS in self.inputs

    def search(self, name: str) -> onnxruntime.InferenceSession:
        """The session of a search graph, the device's own where there is one. BundleError when the bundle has none of that name."""
        own = f"{name}_{self.device.name}"
        name = own if own in self._bundle.search else name
        with self._lock:
            if name not in self._search:
                if name not in self._bundle.search:
                    raise BundleError(
                        f"{self._bundle.path}: no search graph {name!r}, found {', '.join(self._bundle.search) or 'none'}; export again"
                    )
                # One thread: the decoder's workers spin while tokens are selected, and two pools would take the cores from each other.
                self._search[name] = self._sessions.open(self._bundle.file(self._bundle.search[name]), threads=1)
            return self._search[name]

    def cache_bytes(self, rows: int, positions: int) -> int:
        """Of the self attention's keys and values of so many rows with up to so many positions."""
        return self.cache_type.itemsize * sum(map(math.prod, buffer_shapes(self.config.layer_caches, rows, rounded(positions))))

    def cross_bytes(self, sources: int, length: int) -> int:
        """Of the keys and values of so many sources with up to so many tokens; 0 without an encoder."""
        return sources * length * self._cross_token_bytes

    @cached_property
    def _cross_token_bytes(self) -> int:
        outputs = [] if self.encoder is None else self.encoder.get_outputs()
        cross = [value for value in outputs if value.name.startswith(interface.CROSS)]
        return sum(value.shape[1] * value.shape[3] * np.dtype(NUMPY_TYPES[value.type]).itemsize for value in cross)

    def new_cache(self) -> Cache:
        """An empty cache, in host memory or the device's."""
        layers = self.config.layer_caches
        if self.device.host_memory:
            return HostCache(layers, self.cache_type)
        return DeviceCache(layers, self.cache_type, self.device, self._reorder())

    def select_cross(self, cross: CrossCache, sources: np.ndarray) -> CrossCache:
        """The same for some of the sources only."""
        if self.device.host_memory:
            longest = int(cross.mask[sources].sum(1).max())
            arrays = {n: np.ascontiguousarray(a[sources, :, :longest]) for n, a in cross.arrays.items()}
            return CrossCache.of_arrays(arrays, np.ascontiguousarray(cross.mask[sources, :longest]))
        binding, session = self._reorder().io_binding(), self._reorder()
        for i, v in enumerate(cross.values.values()):
            binding.bind_ortvalue_input(f"in_{i}", v)
            binding.bind_output(f"out_{i}", self.device.name)
        binding.bind_ortvalue_input("row", value_of(np.ascontiguousarray(sources, np.int64)))
        run_bound(session, binding)
        return CrossCache(dict(zip(cross.values, binding.get_outputs(), strict=True)), np.ascontiguousarray(cross.mask[sources]), {})

    def encode(self, sources: Sequence[Sequence[int]]) -> CrossCache:
        """Run the encoder over token ids; keys and values stay where they were computed. TextError for an id the graph does not know."""
        assert self.encoder is not None
        ids, mask = padded(sources, self.config.pad_id or 0)
        feeds = interface.source(ids, mask)
        binding = self.encoder.io_binding()
        for i in self.encoder.get_inputs():
            binding.bind_ortvalue_input(i.name, value_of(feeds[i.name]))
        outputs = {o.name: o for o in self.encoder.get_outputs() if o.name.startswith(interface.CROSS)}
        arrays: dict[str, np.ndarray] = {}
        for name, output in outputs.items():
            if self.device.host_memory:
                _, heads, _, size = output.shape
                arrays[name] = np.empty((*mask.shape[:1], heads, mask.shape[1], size), NUMPY_TYPES[output.type])
                binding.bind_ortvalue_output(name, value_of(arrays[name]))
            else:
                binding.bind_output(name, self.device.name)
        self.positions.add(mask.size, int(mask.sum()))
        try:
            run_bound(self.encoder, binding)
        except OnnxportError as e:
            if "out of data bounds" not in str(e):
                raise
            raise TextError(f"the source holds a token id outside the encoder's vocabulary: {e}") from e
        return CrossCache(dict(zip(outputs, binding.get_outputs(), strict=True)), mask, arrays)

    def _reorder(self) -> onnxruntime.InferenceSession:
        special = f"reorder_{self.cache_type}"
        return self.search(special if special in self._bundle.search else "reorder")


def optional_inputs(session: onnxruntime.InferenceSession) -> set[str]:
    """Names of inputs that have a value of their own where a feed leaves them out."""
    return {value.name for value in session.get_overridable_initializers()}
