"""Models that answer in one pass: they take raw arrays, or texts in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from tokenizers import Encoding

from onnxport.errors import BundleError, DataError, TextError, UsageError, one_line
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle.interface import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS
from onnxport.runtime.bundle.manifest import EncodingConfig, Variant
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.memory.native import native
from onnxport.runtime.sessions import NUMPY_TYPES, Sessions
from onnxport.runtime.tokenizer import Piece, TextTokenizer, check_ids, check_text

PADDING = 1.25  # a batch is cut where it would compute this many times its own tokens
TOKENS = 4096  # of a batch: more are no faster, and attention's memory grows with their length
NUMBERS = 1 << 26  # of an output of a batch, with an answer a token

Text = str | tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A text, or a part of one that is too long: what the model reads at once.

    owner: the text's place in the call. offsets: the characters of each token in the text, or of a pair in its own one of the two.
    """

    owner: int
    encoding: Encoding
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.encoding)


class EncoderGraph:
    """The one graph of an encoder or tensor bundle; arrays are checked before they are run."""

    def __init__(self, bundle: Bundle, variant: Variant, sessions: Sessions) -> None:
        roles = [r for r in ("model", "encoder") if r in variant.graphs]
        if not roles:
            raise BundleError(f"{bundle.path}: variant {variant.name} has neither a model nor an encoder graph; export the model again")
        self._session, self._vocabulary = sessions.open(bundle.file(variant.graphs[roles[0]])), bundle.encoding.vocab_size
        self._options = sessions.quiet_run()
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        found = self._session.get_outputs()
        self.outputs = {o.name: tuple(o.shape) for o in found}
        self.output_types = {o.name: NUMPY_TYPES.get(o.type, o.type) for o in found}
        tokens = self.inputs[ATTENTION_MASK].shape if ATTENTION_MASK in self.inputs else []
        # outputs with an answer a token, by the names of their axes: as many labels as tokens are none
        self.by_token = frozenset(o.name for o in found if tokens and None not in tokens and o.shape[: len(tokens)] == tokens)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; without a mask every token counts, without token types all are 0. DataError names what does not fit."""
        inputs = self._completed(inputs)
        absent, extra = [n for n in self.inputs if n not in inputs], [n for n in inputs if n not in self.inputs]
        if absent or extra:
            found = "lacks " + ", ".join(absent) if absent else "has unknown " + ", ".join(extra)
            raise DataError(f"the input {found}; expected arrays named {', '.join(self.inputs)}")
        for name, array in inputs.items():
            self._check(name, np.asarray(array))
        if INPUT_IDS in inputs and self._vocabulary:
            ids = np.asarray(inputs[INPUT_IDS])
            if ids.min() < 0 or ids.max() >= self._vocabulary:
                check_ids(ids.ravel().tolist(), self._vocabulary)
        try:
            feeds = {n: np.ascontiguousarray(a) for n, a in inputs.items()}
            with native:
                results = self._session.run(None, feeds, self._options)
        except Exception as e:  # ONNX Runtime's errors share no base class
            problem = self._unequal(feeds) or f"the model cannot take these arrays ({one_line(e)}); check that their sizes fit together"
            raise DataError(problem) from e
        return dict(zip(self.outputs, results, strict=True))

    def _unequal(self, inputs: Mapping[str, np.ndarray]) -> str | None:
        """What to say of the first axis that inputs share, by its name in the graph, and that is not of one size; None without one."""
        sizes: dict[str, dict[int, list[str]]] = {}
        for name, array in inputs.items():
            for axis, (found, label) in enumerate(zip(array.shape, self.inputs[name].shape, strict=True)):
                if isinstance(label, str):
                    sizes.setdefault(label, {}).setdefault(found, []).append(f"axis {axis} of {name}")
        for label, places in sizes.items():
            if len(places) > 1:
                told = " and ".join(f"{size} on {', '.join(axes)}" for size, axes in places.items())
                return f"the arrays differ in {label}: {told}; expected the same size on all of them"
        return None

    def _completed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs, with what models of transformers do without."""
        if INPUT_IDS not in inputs:
            return dict(inputs)
        shape = np.shape(inputs[INPUT_IDS])
        assumed = {ATTENTION_MASK: 1, TOKEN_TYPE_IDS: 0}
        lacking = [name for name in assumed if name in self.inputs and name not in inputs]
        made = {name: np.full(shape, assumed[name], NUMPY_TYPES.get(self.inputs[name].type, "int64")) for name in lacking}
        return {**inputs, **made}

    def _check(self, name: str, array: np.ndarray) -> None:
        wanted = self.inputs[name]
        kind = NUMPY_TYPES.get(wanted.type, wanted.type)
        if str(array.dtype) != kind:
            raise DataError(f"{name} is {array.dtype}, expected {kind}; convert it with .astype({kind!r})")
        if array.ndim != len(wanted.shape):
            raise DataError(f"{name} has {array.ndim} axes, expected {len(wanted.shape)} ({', '.join(map(str, wanted.shape))})")
        for axis, (found, size) in enumerate(zip(array.shape, wanted.shape, strict=True)):
            if isinstance(size, int) and found != size:
                raise DataError(f"{name} has size {found} on axis {axis}, expected {size}")
            if found == 0:
                raise DataError(f"{name} is empty on axis {axis}, expected at least 1")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model that answers in one pass, whatever runs it, and the handling of its texts.

    inputs: name → numpy type. outputs: name → shape. run: arrays by name → outputs by name; DataError. by_token: outputs with an answer a
    token. layers: the arrays of each of config.layers. input_shapes, output_types: of a graph, where one runs it. reads_empty: empty texts
    are read too, as their special tokens.
    """

    task: str
    config: EncodingConfig
    tokenizer: TextTokenizer | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, tuple[int | str, ...]]
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    by_token: frozenset[str] = frozenset()
    layers: tuple[Mapping[str, np.ndarray], ...] = ()
    input_shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    output_types: Mapping[str, str] = field(default_factory=dict)
    reads_empty: bool = False

    @classmethod
    def open(cls, bundle: Bundle, variant: Variant, sessions: Sessions, tokenizer: TextTokenizer | None) -> Encoder:
        """A bundle's variant, run by ONNX Runtime. BundleError."""
        graph = EncoderGraph(bundle, variant, sessions)
        types = {name: NUMPY_TYPES.get(value.type, "int64") for name, value in graph.inputs.items()}
        shapes = {name: tuple(value.shape) for name, value in graph.inputs.items()}
        return cls(
            bundle.task,
            bundle.encoding,
            tokenizer,
            types,
            graph.outputs,
            graph.run,
            graph.by_token,
            pooled_layers(bundle),
            shapes,
            graph.output_types,
        )

    def windows(self, texts: Sequence[Text], stride: int | None, most: int | None = None, cut_first: bool = False) -> list[Window]:
        """Texts, or pairs of them, as the model reads them: where longer than it, or than `most`, in windows that share `stride` tokens.

        Of a pair the second is cut, or the first with `cut_first`.
        TextError names a text that cannot be read, UsageError a stride that cannot be.
        """
        tokenizer = self._reader(stride)
        pairs = [_located(i, len(texts), _pair, text, self.reads_empty) for i, text in enumerate(texts)]
        if self.config.lower:
            pairs = [(text.lower(), None if pair is None else pair.lower()) for text, pair in pairs]
        most = min((size for size in (most, self.config.max_length) if size is not None), default=None)
        found = []
        for i, ((text, pair), whole) in enumerate(zip(pairs, tokenizer.read(pairs), strict=True)):
            if not len(whole):  # an empty text, where the tokenizer adds nothing
                _located(i, len(texts), _refuse_empty)
            fits = most is None or len(whole) <= most
            parts = [Piece(whole, whole.offsets)]
            if not fits:
                parts = _located(i, len(texts), tokenizer.cut, text, pair, most, stride, cut_first)
            found += [Window(i, part.encoding, part.offsets) for part in parts]
        return found

    def word_windows(self, sentences: Sequence[Sequence[str]], stride: int | None) -> list[Window]:
        """Sentences that are words already, each in as many windows as it takes; `word_ids` of their encodings count these words.

        TextError names a sentence that cannot be read, UsageError a stride that cannot be.
        """
        tokenizer = self._reader(stride)
        found = []
        for i, words in enumerate(sentences):
            words = [word.lower() for word in words] if self.config.lower else list(words)
            parts = _located(i, len(sentences), tokenizer.words, words, self.config.max_length, stride)
            found += [Window(i, part.encoding, part.offsets) for part in parts]
        return found

    def _reader(self, stride: int | None) -> TextTokenizer:
        """The tokenizer. TextError without one; UsageError for a stride that cannot be."""
        if self.tokenizer is None:
            raise TextError("the bundle has no tokenizer, so it cannot read text; use run with token ids")
        if stride is not None and (isinstance(stride, bool) or not isinstance(stride, int) or stride < 0):
            raise UsageError(f"stride is {stride!r}, expected a whole number from 0")
        return self.tokenizer

    def each(self, windows: Sequence[Window], batch_size: int) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
        """Every window and its row of all outputs, those of like length together: axes over tokens can be longer than the window."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}, expected a whole number from 1")
        assert self.tokenizer is not None  # windows were made with it
        lengths = [len(window) for window in windows]
        order = sorted(range(len(windows)), key=lengths.__getitem__)
        for group in _groups(order, lengths, batch_size, self._most_tokens()):
            shape = (len(group), lengths[group[-1]])
            feeds = {name: np.full(shape, value, self.inputs[name]) for name, value in self._padding().items()}
            for row, i in enumerate(group):
                encoding = windows[i].encoding
                feeds[INPUT_IDS][row, : lengths[i]] = self.tokenizer.known(encoding.ids)
                if ATTENTION_MASK in feeds:
                    feeds[ATTENTION_MASK][row, : lengths[i]] = 1
                if TOKEN_TYPE_IDS in feeds and self.config.token_types:
                    feeds[TOKEN_TYPE_IDS][row, : lengths[i]] = encoding.type_ids
            outputs = self.run(feeds)
            if odd := [name for name, array in outputs.items() if not array.ndim or len(array) != len(group)]:
                raise BundleError(f"the model's {odd[0]} is {list(outputs[odd[0]].shape)} for {len(group)} texts; use run with arrays")
            for row, i in enumerate(group):
                yield windows[i], {name: array[row] for name, array in outputs.items()}

    def _most_tokens(self) -> int:
        """Tokens of a batch: fewer where the answers are wide, such as logits of a whole vocabulary."""
        shapes = [shape for name, shape in self.outputs.items() if len(shape) == 3]
        widest = max((shape[-1] for shape in shapes if isinstance(shape[-1], int)), default=1)
        return min(TOKENS, NUMBERS // max(widest, 1))

    def _padding(self) -> dict[str, int]:
        known = {INPUT_IDS: self.config.pad_id, ATTENTION_MASK: 0, TOKEN_TYPE_IDS: self.config.pad_type_id}
        if unknown := [name for name in self.inputs if name not in known]:
            raise UsageError(f"the model reads {', '.join(unknown)}, which texts do not give; use run with arrays")
        return {name: known[name] for name in self.inputs}


def pooled_layers(bundle: Bundle) -> tuple[dict[str, np.ndarray], ...]:
    """The arrays of each of the layers behind a bundle's pooling. BundleError."""
    layers = bundle.encoding.layers
    found = {} if bundle.layers is None else read_npz(bundle.file(bundle.layers), BundleError, "export the model again")
    arrays: list[dict[str, np.ndarray]] = [{} for _ in layers]
    for name, array in found.items():
        place, _, part = name.partition("/")
        if not place.isdecimal() or int(place) >= len(layers) or array.dtype.kind != "f":
            raise BundleError(f"{bundle.path}: {bundle.layers} holds {name!r:.60}, which belongs to no layer; export the model again")
        arrays[int(place)][part] = array
    needed = {"dense": ("weight",), "norm": ("weight", "bias")}
    for i, layer in enumerate(layers):
        if lacking := [name for name in needed.get(layer.kind, ()) if name not in arrays[i]]:
            raise BundleError(f"{bundle.path}: layer {i} behind the pooling has no {lacking[0]}; export the model again")
    return tuple(arrays)


def _groups(order: Sequence[int], lengths: Sequence[int], size: int, most: int = TOKENS) -> list[list[int]]:
    """Batches of sorted items, cut also where padding would grow beyond PADDING or tokens beyond `most`."""
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < size:
            group = groups[-1]
            computed = lengths[i] * (len(group) + 1)
            if computed <= min(most, PADDING * (sum(lengths[j] for j in group) + lengths[i])):
                group.append(i)
                continue
        groups.append([i])
    return groups


def _pair(text: Any, empty: bool) -> tuple[str, str | None]:
    """A text as one of a pair whose other is missing. TextError for what is neither, or empty where that is not allowed."""
    listed = isinstance(text, list) and len(text) == 2 and all(isinstance(one, str) for one in text)  # JSON has no tuples
    both = tuple(text) if listed or isinstance(text, tuple) else (text,)
    if len(both) > 2 or not both:
        raise TextError(f"found {len(both)} texts, expected a text or a pair of texts")
    for one in both:
        if not isinstance(one, str):
            raise TextError(f"input is {type(one).__name__}, expected a text (str) or a pair of texts")
        check_text(one)
        if not empty and not one.strip():
            _refuse_empty()
    return both[0], both[1] if len(both) == 2 else None


def _refuse_empty() -> None:
    raise TextError("the text is empty, expected some words; leave it out")


def _located(place: int, count: int, call: Callable[..., T], *arguments: Any) -> T:
    """`call` with the text's place in front of what it refuses."""
    try:
        return call(*arguments)
    except TextError as error:
        raise TextError(f"text {place}: {error}" if count > 1 else str(error)) from None


def expect(encoder: Encoder, task: str, outputs: tuple[str, ...]) -> None:
    """UsageError where the bundle is for another task, or its graph does not answer it."""
    if encoder.task != task:
        raise UsageError(f"this bundle's task is {encoder.task}, expected {task}; use what belongs to its task, or run")
    if lacking := [name for name in outputs if name not in encoder.outputs]:
        raise UsageError(f"the model gives {', '.join(encoder.outputs)}, expected {' and '.join(lacking)} for {task}; use run")


def finite(array: np.ndarray, owner: int) -> np.ndarray:
    """`array` as float32. DataError where it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise DataError(f"text {owner}: the model answers NaN or infinity; try another precision, such as fp32")
    return array.astype(np.float32)


def weighted(parts: Iterable[tuple[int, int, np.ndarray]], count: int) -> list[np.ndarray]:
    """Means of (owner, weight, vector), one an owner, float64; every owner has a part."""
    sums: list[np.ndarray] = [np.zeros(())] * count
    weights = [0] * count
    for owner, weight, vector in parts:
        sums[owner] = sums[owner] + vector.astype(np.float64) * weight
        weights[owner] += weight
    return [total / weight for total, weight in zip(sums, weights, strict=True)]
