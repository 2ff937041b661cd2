"""The parts of bundle.json as frozen dataclasses, their checked reading from JSON values, and their writing.

A runtime passes over keys that it does not know. Where such a key would change answers, the bundle names it under `requires`, and a runtime
that does not know the name refuses the bundle. Runtimes of version 0.1.0 know no `requires`, but refuse a `format` above 1: a bundle that
requires something is of format 2, any other is of format 1, which they read. So a new key that changes answers without being asked for gets
a place in REQUIRED; a key that only offers something, or belongs to a task that older runtimes refuse by its name, does not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from onnxport.errors import BundleError, UsageError
from onnxport.runtime.options import Options, SearchConfig

MANIFEST = "bundle.json"
REQUIRED = (
    "encoding.activation",
    "encoding.default_prompt",
    "encoding.layers",
    "encoding.lower",
    "encoding.truncate_dim",
    "generation.caches",
    "generation.encoder_no_repeat_ngram",
    "generation.max_total_tokens",
    "generation.min_total_tokens",
    "variants.whole_caches",
)
SEARCH_FIELDS: dict[str, tuple[type, ...]] = {
    "beam": (int,),
    "min_new_tokens": (int,),
    "length_penalty": (int, float),
    "early_stopping": (bool, str),
    "repetition_penalty": (int, float),
    "no_repeat_ngram": (int,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
}
MOST = (1 << 31) - 1  # of ids, positions, sizes
MOST_BYTES = (1 << 63) - 1
MOST_LAYERS = 1 << 12
MOST_OF_A_HEAD = 1 << 16  # also of heads
MOST_OF_WINDOW = 1 << 20  # positions
MOST_BEAMS = 1 << 12
TARGETS = ("forced", "start")  # where the language of an answer goes: its first token is forced, or decoding starts with it
POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len", "weightedmean")
LAYERS = ("dense", "norm", "normalize")
ACTIVATIONS = ("identity", "tanh", "relu", "gelu", "sigmoid", "silu")
PROBLEMS = ("single", "multi", "regression")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
SCORE_ACTIVATIONS = ("identity", "sigmoid", "softmax")
_OF_EMBEDDING = ("layers", "prompts", "default_prompt", "include_prompt", "truncate_dim", "similarity")
_READ_BY_TASK = {
    "embedding": ("pooling", "normalize"),
    "classification": ("labels", "problem"),
    "token-classification": ("labels",),
    "fill-mask": ("mask_id",),
}


@dataclass(frozen=True)
class Manifest:
    """bundle.json as it was read."""

    value: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """A copy, free to change."""
        return copy.deepcopy(dict(self.value))


def required(manifest: Mapping[str, Any]) -> list[str]:
    """The names in REQUIRED of the keys that a manifest has, sorted."""
    sections = {name: manifest.get(name) or {} for name in ("encoding", "generation")}
    sections["variants"] = {key: value for entry in manifest.get("variants", {}).values() for key, value in entry.items() if value}
    return sorted(name for name in REQUIRED if sections[name.partition(".")[0]].get(name.partition(".")[2]))


def check_required(value: object) -> None:
    """BundleError unless `requires` of a manifest holds names of REQUIRED alone."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BundleError(f"{MANIFEST}: requires must be a list of names; export the model again")
    if unknown := sorted(set(value) - set(REQUIRED)):
        raise BundleError(
            f"{MANIFEST}: the bundle requires {', '.join(unknown)[:200]}, which this onnxport does not know; upgrade onnxport"
        )


@dataclass(frozen=True)
class FileEntry:
    """A file's SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class LayerCache:
    """What a layer keeps of each position: heads of keys and values and their size; window: positions that are kept, None for all."""

    kv_heads: int
    head_size: int
    window: int | None = None


@dataclass(frozen=True)
class Languages:
    """Languages of a model that translates between many.

    ids: code → id, the same in source and target. before, after: ids around a source, None in the place of its language. target: one of
    TARGETS. source: the code of a source whose language nobody names.
    """

    ids: Mapping[str, int]
    before: tuple[int | None, ...]
    after: tuple[int | None, ...]
    target: str
    source: str | None = None

    def id_of(self, option: str, code: str) -> int:
        """The id of a language. UsageError names some of those that there are."""
        if code not in self.ids:
            some = ", ".join(list(self.ids)[:8])
            more = f" and {len(self.ids) - 8} more, see bundle.json" if len(self.ids) > 8 else ""
            raise UsageError(f"{option} is {code!r:.60}, this model has {some}{more}")
        return self.ids[code]

    def around(self, language: int) -> tuple[list[int], list[int]]:
        """Ids before and after a source of a language."""
        before, after = ([language if i is None else i for i in part] for part in (self.before, self.after))
        return before, after

    def as_dict(self) -> dict[str, Any]:
        """Its part of the `generation` section."""
        return {
            "ids": dict(self.ids), "before": list(self.before), "after": list(self.after), "target": self.target, "source": self.source
        }  # fmt: skip


@dataclass(frozen=True)
class GenerationConfig:
    """What the decoding loop must know of a model; ids refer to the target vocabulary unless they say source."""

    kind: str  # "seq2seq" or "causal"
    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    source_vocab_size: int | None
    max_length: int | None  # positions; None is unlimited
    pad_id: int | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    decoder_start_id: int | None
    max_new_tokens: int | None
    search: SearchConfig = SearchConfig()
    window: int | None = None  # positions a cache holds where every layer has this sliding window
    max_total_tokens: int | None = None  # of prompt and answer together, where nobody says how many are new
    caches: tuple[LayerCache, ...] = ()  # by layer, where they differ
    max_source_length: int | None = None  # positions of a source, where they are not those of a target
    languages: Languages | None = None

    @property
    def source_length(self) -> int | None:
        """Positions of a source; None is unlimited."""
        return self.max_length if self.max_source_length is None else self.max_source_length

    @property
    def layer_caches(self) -> tuple[LayerCache, ...]:
        """What each layer keeps."""
        return self.caches or (LayerCache(self.kv_heads, self.head_size, self.window),) * self.layers

    def with_whole_caches(self) -> GenerationConfig:
        """The same model where every layer keeps every position, also beyond its window."""
        return replace(self, window=None, caches=tuple(replace(cache, window=None) for cache in self.caches))

    def plain(self) -> GenerationConfig:
        """The same model without a search of its own: greedy, every token allowed, none forced."""
        return replace(self, search=SearchConfig())

    def as_dict(self) -> dict[str, Any]:
        """The `generation` section of bundle.json: of the search only what differs from a neutral one."""
        section: dict[str, Any] = {
            "kind": self.kind,
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_size": self.head_size,
            "vocab_size": self.vocab_size,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "eos_id": _one_or_several(self.eos_ids),
            "decoder_start_id": self.decoder_start_id,
        }
        section |= {"source_vocab_size": self.source_vocab_size} if self.kind == "seq2seq" else {"window": self.window}
        if self.max_new_tokens is not None:
            section["max_new_tokens"] = self.max_new_tokens
        if self.max_total_tokens is not None:
            section["max_total_tokens"] = self.max_total_tokens
        if self.max_source_length is not None:
            section["max_source_length"] = self.max_source_length
        if self.languages is not None:
            section["languages"] = self.languages.as_dict()
        if self.caches:
            section["caches"] = [[cache.kv_heads, cache.head_size, cache.window] for cache in self.caches]
        neutral = SearchConfig()
        for entry in fields(SearchConfig):
            if (value := getattr(self.search, entry.name)) != getattr(neutral, entry.name):
                section[entry.name] = value
        if "forced_eos_ids" in section:
            section["forced_eos_id"] = _one_or_several(section.pop("forced_eos_ids"))
        lists = ("suppressed", "begin_suppressed", "bad_words")
        return section | {key: [list(i) if isinstance(i, tuple) else i for i in section[key]] for key in lists if key in section}


@dataclass(frozen=True)
class PooledLayer:
    """A step between pooling and the vector: "dense" (activation(x @ weight + bias)), "norm" (a LayerNorm), "normalize" (to length 1).

    residual: of a dense one, what it reads is added. eps: of a norm. Its arrays stand in the bundle's `layers` file under its place.
    """

    kind: str
    activation: str = "identity"
    residual: bool = False
    eps: float = 1e-5

    def as_dict(self) -> dict[str, Any]:
        """Its entry in bundle.json."""
        more: dict[str, dict[str, Any]] = {
            "dense": {"activation": self.activation, "residual": self.residual},
            "norm": {"eps": self.eps},
        }
        return {"kind": self.kind, **more.get(self.kind, {})}


@dataclass(frozen=True)
class EncodingConfig:
    """How texts become inputs, and outputs answers, in an encoder-only bundle; every field has a default.

    max_length: of a text, with its special tokens. labels: names in the order of the logits. problem: what logits mean, "single" (one label
    of several), "multi" or "regression". token_types: the model reads the token types that a tokenizer gives, else 0 for all; `kinds` in
    bundle.json. question_first: before its context, as models read it whose tokenizers pad on the right.
    lower: texts are brought to small letters before the tokenizer sees them. pooling: one of POOLINGS, or several with + between them,
    whose vectors are joined. layers: what follows it, before `normalize`. prompts: by name, what `encode` puts before texts;
    default_prompt: the name of the one where none is asked for. include_prompt: pooling counts its tokens too.
    truncate_dim: numbers of a vector that are kept. similarity: how two vectors are compared, one of SIMILARITIES; None where nothing says.
    activation: what CrossEncoder of sentence-transformers makes of logits, one of SCORE_ACTIVATIONS; None where it follows `problem`.
    mask_id, unknown_id: tokens that stand for a missing word, and for what the tokenizer does not know.
    """

    max_length: int | None = None
    pad_id: int = 0
    pad_type_id: int = 0
    vocab_size: int | None = None
    pooling: str = "mean"
    normalize: bool = True
    labels: tuple[str, ...] = ()
    problem: str = "single"
    token_types: bool = True
    question_first: bool = True
    lower: bool = False
    layers: tuple[PooledLayer, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    truncate_dim: int | None = None
    mask_id: int | None = None
    unknown_id: int | None = None
    similarity: str | None = None
    activation: str | None = None

    @property
    def score_activation(self) -> str:
        """What sentence-transformers' CrossEncoder makes of logits."""
        return self.activation or ("sigmoid" if self.problem == "multi" else "identity")

    @property
    def poolings(self) -> tuple[str, ...]:
        """The parts of `pooling`."""
        return tuple(self.pooling.split("+"))

    def as_dict(self, task: str) -> dict[str, Any]:
        """The `encoding` section of bundle.json: sizes, what the task needs, and whatever else differs from its default."""
        always = ("max_length", "pad_id", *(("problem",) if self.labels else ()), *_READ_BY_TASK.get(task, ()))
        section: dict[str, Any] = {}
        defaults = EncodingConfig()
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != getattr(defaults, entry.name) or entry.name in always:
                section[{"token_types": "kinds"}.get(entry.name, entry.name)] = list(value) if isinstance(value, tuple) else value
        if self.layers:
            section["layers"] = [layer.as_dict() for layer in self.layers]
        section |= {"prompts": dict(self.prompts)} if self.prompts else {}
        return section if task == "embedding" else {name: value for name, value in section.items() if name not in _OF_EMBEDDING}


@dataclass(frozen=True)
class ChatConfig:
    """How a conversation becomes a prompt. template: path of a Jinja template; tokens: special tokens by name, which it may use."""

    template: str
    tokens: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The `chat` section of bundle.json."""
        return {"template": self.template, "tokens": dict(self.tokens)}


@dataclass(frozen=True)
class Variant:
    """One precision of the model: `graphs` maps role to path, `files` names all files it needs besides the shared ones.

    target: the device whose kernels its graphs are made of, "cpu" or "cuda"; "any" where all have them; "web" for runtimes of JavaScript,
    whose graphs run on the CPU too. min_onnxruntime: the oldest version of ONNX Runtime that runs its graphs, such as "1.23"; None in
    bundles that do not name one. whole_caches: its layers keep every position, also where the model's windows need the newest alone.
    evidence: what was learned when it was made, for reports; {} where nothing was. "layers": [{"name", "relative_error"}], "sensitivity":
    {"metric", "modules": {module: {scheme: value}}}, "search": [{"plan", "quality", "seconds"}], "budget".
    """

    name: str
    files: tuple[str, ...]
    bytes: int
    graphs: Mapping[str, str]
    target: str
    plan: Mapping[str, Any]
    fusions: Mapping[str, int]
    parity: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    min_onnxruntime: str | None = None
    whole_caches: bool = False

    @property
    def reduced(self) -> bool:
        """Whether its weights of 8 bits a column are all kept within 7, so that no processor loses sums of their products."""
        columns = [str(scheme) for scheme in self.plan.values() if str(scheme).startswith(("int8-rows", "int8-static"))]
        return bool(columns) and all("-reduced" in scheme for scheme in columns)


class Reader:
    """Takes typed fields out of a JSON object; errors name the field that is wrong."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{MANIFEST}: {where} is {type(value).__name__}, expected an object; export the model again")
        self.value, self.where = value, where

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """The value of `key`, of a type in `kind`; without `default` it must be there. BundleError."""
        if key not in self.value:
            if default is ...:
                raise BundleError(f"{MANIFEST}: {self.where} has no {key!r}; export the model again")
            return default
        found = self.value[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise BundleError(f"{MANIFEST}: {self.where}.{key} is {type(found).__name__}, expected {names}; export the model again")
        return found

    def strings(self, key: str, what: str = "paths") -> dict[str, str]:
        """A map of names to paths, or to other texts; empty when absent. BundleError."""
        found = self.get(key, dict, {})
        if not all(isinstance(v, str) for v in found.values()):
            raise BundleError(f"{MANIFEST}: {self.where}.{key} must map names to {what}; export the model again")
        return dict(found)

    def natural(self, key: str, default: Any = ..., smallest: int = 0, null: bool = False, most: int = MOST) -> Any:
        """A whole number from `smallest` to `most`, or None where `null` allows it. BundleError."""
        found = self.get(key, (int, type(None)) if null else int, default)
        if found is not None and found is not default and not smallest <= found <= most:
            bound = f"at least {smallest}" if found < smallest else f"at most {most}"
            shown = found if abs(found) < 1 << 64 else f"a number of {found.bit_length()} bits"
            raise BundleError(f"{MANIFEST}: {self.where}.{key} is {shown}, expected {bound}; export the model again")
        return found

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids from a number or a list; empty when absent or null. BundleError."""
        found = self.get(key, (int, list, type(None)), None)
        ids = tuple(found) if isinstance(found, list) else () if found is None else (found,)
        if not all(type(i) is int and abs(i) <= MOST for i in ids):
            raise BundleError(f"{MANIFEST}: {self.where}.{key} must hold integers; export the model again")
        return ids


def _caches(r: Reader) -> tuple[LayerCache, ...]:
    """The caches by layer; empty where all are alike. BundleError."""
    found, layers = r.get("caches", list, []), r.natural("layers", smallest=1, most=MOST_LAYERS)
    bounds = (MOST_OF_A_HEAD, MOST_OF_A_HEAD, MOST_OF_WINDOW)
    for entry in found:
        sound = isinstance(entry, list) and len(entry) == 3 and None not in entry[:2]
        if not sound or not all(n is None or (type(n) is int and 1 <= n <= most) for n, most in zip(entry, bounds, strict=True)):
            raise BundleError(
                f"{MANIFEST}: generation.caches holds {entry!r:.60}, expected [heads, head size, window or null]; export the model again"
            )
    if found and len(found) != layers:
        raise BundleError(f"{MANIFEST}: generation.caches has {len(found)} entries, expected one for each of {layers} layers; export again")
    return tuple(LayerCache(*entry) for entry in found)


def _languages(r: Reader) -> Languages | None:
    """The optional `languages`. BundleError."""
    value = r.get("languages", (dict, type(None)), None)
    if value is None:
        return None
    inner = Reader(value, "generation.languages")
    ids = inner.get("ids", dict)
    sides = [tuple(inner.get(name, list)) for name in ("before", "after")]
    every = [*ids.values(), *(i for side in sides for i in side if i is not None)]
    if not ids or not all(isinstance(code, str) for code in ids) or not all(type(i) is int and 0 <= i <= MOST for i in every):
        raise BundleError(f"{MANIFEST}: generation.languages must map codes to ids; export the model again")
    target = inner.get("target", str)
    if target not in TARGETS:
        raise BundleError(f"{MANIFEST}: generation.languages.target is {target!r}, expected one of {', '.join(TARGETS)}; upgrade onnxport")
    return Languages(ids, sides[0], sides[1], target, inner.get("source", (str, type(None)), None))


def generation(value: object) -> GenerationConfig | None:
    """The `generation` section; None for models that do not generate. BundleError."""
    if value is None:
        return None
    r = Reader(value, "generation")
    kind = r.get("kind", str)
    if kind not in ("seq2seq", "causal"):
        raise BundleError(f"{MANIFEST}: generation.kind is {kind!r}, expected seq2seq or causal; upgrade onnxport")
    ids = r.ids("eos_id")
    own = search_config(r)
    config = GenerationConfig(
        kind=kind,
        layers=r.natural("layers", smallest=1, most=MOST_LAYERS),
        kv_heads=r.natural("kv_heads", smallest=1, most=MOST_OF_A_HEAD),
        head_size=r.natural("head_size", smallest=1, most=MOST_OF_A_HEAD),
        vocab_size=r.natural("vocab_size", smallest=1),
        source_vocab_size=r.natural("source_vocab_size", None, 1, null=True),
        max_length=r.natural("max_length", None, 1, null=True),
        pad_id=r.natural("pad_id", None, null=True),
        bos_id=r.natural("bos_id", None, null=True),
        eos_ids=ids,
        decoder_start_id=r.natural("decoder_start_id", None, null=True),
        max_new_tokens=r.natural("max_new_tokens", None, 1, null=True),
        max_total_tokens=r.natural("max_total_tokens", None, 1, null=True),
        search=own,
        window=r.natural("window", None, 1, null=True, most=MOST_OF_WINDOW),
        caches=_caches(r),
        max_source_length=r.natural("max_source_length", None, 1, null=True),
        languages=_languages(r),
    )
    if kind == "seq2seq" and config.decoder_start_id is None:
        raise BundleError(f"{MANIFEST}: generation.decoder_start_id is missing from a seq2seq bundle; export the model again")
    target = [config.pad_id, config.bos_id, config.decoder_start_id, *ids, own.forced_bos_id, *own.forced_eos_ids]
    target += [*own.suppressed, *own.begin_suppressed, *(i for word in own.bad_words for i in word)]
    source = [config.pad_id]  # sources are padded too
    if (languages := config.languages) is not None:
        target += languages.ids.values()
        source += [*languages.ids.values(), *languages.before, *languages.after]
    for named, size in ((target, config.vocab_size), (source, config.source_vocab_size or config.vocab_size)):
        wrong = [i for i in named if i is not None and not 0 <= i < size]
        if wrong:
            raise BundleError(f"{MANIFEST}: generation names token id {wrong[0]} outside a vocabulary of {size}; export the model again")
    return config


def search_config(r: Reader) -> SearchConfig:
    """The optional fields of `generation` about the search; null is absent. BundleError."""
    found: dict[str, Any] = {}
    for key, kinds in SEARCH_FIELDS.items():
        value = r.get(key, (*kinds, type(None)), None)
        if value is not None:
            found[key] = value
    for key, most in (("beam", MOST_BEAMS), ("top_k", MOST), ("min_new_tokens", MOST), ("max_new_tokens", MOST), ("no_repeat_ngram", MOST)):
        if key in r.value:
            r.natural(key, null=True, most=most)
    try:  # a model may ask for what a caller may ask for
        Options(max_new_tokens=r.get("max_new_tokens", (int, type(None)), None), **found)
    except UsageError as e:
        raise BundleError(f"{MANIFEST}: generation: {e}; export the model again") from None
    words = r.get("bad_words", (list, type(None)), None) or []
    if not all(isinstance(word, list) and word and all(type(i) is int and abs(i) <= MOST for i in word) for word in words):
        raise BundleError(f"{MANIFEST}: generation.bad_words must hold lists of integers; export the model again")
    return SearchConfig(
        **found,
        renormalize=bool(r.get("renormalize", (bool, type(None)), None)),
        forced_bos_id=r.natural("forced_bos_id", None, null=True),
        forced_eos_ids=r.ids("forced_eos_id"),
        suppressed=r.ids("suppressed"),
        begin_suppressed=r.ids("begin_suppressed"),
        bad_words=tuple(map(tuple, words)),
        min_total_tokens=r.natural("min_total_tokens", None, null=True) or 0,
        encoder_no_repeat_ngram=r.natural("encoder_no_repeat_ngram", None, null=True) or 0,
    )


def encoding(value: object) -> EncodingConfig:
    """The `encoding` section; defaults when it is null. BundleError."""
    r = Reader({} if value is None else value, "encoding")
    labels = r.get("labels", (list, type(None)), None) or []
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise BundleError(f"{MANIFEST}: encoding.labels must hold texts, each once; export the model again")
    config = EncodingConfig(
        max_length=r.natural("max_length", None, 1, null=True),
        pad_id=r.natural("pad_id", 0, null=True) or 0,
        pad_type_id=r.natural("pad_type_id", 0),
        vocab_size=r.natural("vocab_size", None, 1, null=True),
        pooling=r.get("pooling", str, "mean"),
        normalize=r.get("normalize", bool, True),
        labels=tuple(labels),
        problem=r.get("problem", (str, type(None)), None) or ("regression" if len(labels) == 1 else "single"),
        token_types=r.get("kinds", bool, True),
        question_first=r.get("question_first", bool, True),
        lower=r.get("lower", bool, False),
        layers=tuple(_layer(i, value) for i, value in enumerate(r.get("layers", list, []))),
        prompts=r.strings("prompts"),
        default_prompt=r.get("default_prompt", (str, type(None)), None),
        include_prompt=r.get("include_prompt", bool, True),
        truncate_dim=r.natural("truncate_dim", None, 1, null=True),
        mask_id=r.natural("mask_id", None, null=True),
        unknown_id=r.natural("unknown_id", None, null=True),
        similarity=r.get("similarity", (str, type(None)), None),
        activation=r.get("activation", (str, type(None)), None),
    )
    _check_encoding(config)
    return config


def _layer(place: int, value: object) -> PooledLayer:
    r = Reader(value, f"encoding.layers.{place}")
    eps = float(r.get("eps", (int, float), PooledLayer.eps))
    layer = PooledLayer(r.get("kind", str), r.get("activation", str, "identity"), r.get("residual", bool, False), eps)
    for name, value, known in (("kind", layer.kind, LAYERS), ("activation", layer.activation, ACTIVATIONS)):
        if value not in known:
            raise BundleError(f"{MANIFEST}: {r.where}.{name} is {value!r}, expected one of {', '.join(known)}; upgrade onnxport")
    return layer


def _check_encoding(config: EncodingConfig) -> None:
    """BundleError for values that this version does not know, or that do not fit together."""
    named = [*(("pooling", one, POOLINGS) for one in config.poolings), ("problem", config.problem, PROBLEMS)]
    optional = (("similarity", config.similarity, SIMILARITIES), ("activation", config.activation, SCORE_ACTIVATIONS))
    named += [(name, value, known) for name, value, known in optional if value is not None]
    for name, value, known in named:
        if value not in known:
            raise BundleError(f"{MANIFEST}: encoding.{name} is {value!r}, expected one of {', '.join(known)}; upgrade onnxport")
    for name, number in (("pad_id", config.pad_id), ("mask_id", config.mask_id)):
        if None not in (number, config.vocab_size) and number >= config.vocab_size:  # type: ignore[operator]
            raise BundleError(
                f"{MANIFEST}: encoding.{name} {number} is outside a vocabulary of {config.vocab_size}; export the model again"
            )
    if config.default_prompt is not None and config.default_prompt not in config.prompts:
        raise BundleError(
            f"{MANIFEST}: encoding.default_prompt is {config.default_prompt!r}, expected one of its prompts; export the model again"
        )


def chat(value: object) -> ChatConfig | None:
    """The `chat` section; None for models without a template. BundleError."""
    if value is None:
        return None
    r = Reader(value, "chat")
    return ChatConfig(r.get("template", str), r.strings("tokens"))


def variant(name: str, value: object) -> Variant:
    """One entry of `variants`. BundleError."""
    r = Reader(value, f"variants.{name}")
    files = r.get("files", list)
    if not all(isinstance(f, str) for f in files):
        raise BundleError(f"{MANIFEST}: variants.{name}.files must hold paths; export the model again")
    oldest = r.get("min_onnxruntime", (str, type(None)), None)
    if oldest is not None and not re.fullmatch(r"\d+(\.\d+)*", oldest):
        raise BundleError(f"{MANIFEST}: variants.{name}.min_onnxruntime is {oldest!r}, expected a version such as 1.23; upgrade onnxport")
    return Variant(
        name=name,
        files=tuple(files),
        bytes=r.natural("bytes", most=MOST_BYTES),
        graphs=r.strings("graphs"),
        target=r.get("target", str, "any"),
        plan=r.get("plan", dict, {}),
        fusions=r.get("fusions", dict, {}),
        parity=r.get("parity", dict, {}),
        evidence=r.get("evidence", dict, {}),
        min_onnxruntime=oldest,
        whole_caches=r.get("whole_caches", bool, False),
    )


def _one_or_several(ids: tuple[int, ...]) -> int | list[int] | None:
    """One id as itself, several as a list, none as None."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None
