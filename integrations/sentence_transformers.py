"""`SentenceTransformer` and `CrossEncoder` over bundles, with the arguments, defaults and results of sentence-transformers 6.

from onnxport.integrations.sentence_transformers import SentenceTransformer
model = SentenceTransformer("artifacts/minilm")
model.similarity(model.encode(["a text"]), model.encode(["another one"]))

Neither torch nor sentence-transformers is needed. As in the original, texts beyond `max_seq_length` are cut, and empty texts are encoded.
An argument that would change answers and that a bundle cannot follow is refused by its name (UsageError). Those that only say how a model
is fetched (cache_folder, token, use_auth_token, local_files_only, trust_remote_code) have no effect: a bundle is a local folder.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from onnxport.errors import UsageError
from onnxport.runtime.arrays import softmax
from onnxport.runtime.bundle.manifest import SIMILARITIES
from onnxport.runtime.encoder import Encoder, Text, expect
from onnxport.runtime.model import Model, load, progress_bar
from onnxport.runtime.options import whole
from onnxport.runtime.tasks import embedding
from onnxport.runtime.tasks.classification import LOGITS, text_logits

EMBEDDING_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
TINY = 1e-12  # of a length that vectors are divided by

P = ParamSpec("P")
Vectors = Any  # an array, a tensor of torch, or a list of either
_ROOM = 1 << 24  # numbers of a difference of matrices at once


class _BundleModel:
    """What both classes share: a loaded bundle, its prompts, its longest text, and the form of results.

    runtime: the loaded Model. prompts: by name, what may stand before texts. default_prompt_name: the one where none is asked for.
    """

    def __init__(
        self,
        path: str | Path | None,
        device: str | None,
        precision: str | None,
        threads: int | None,
        refused: Mapping[str, Any],
        backend: str,
    ) -> None:
        for name, value in refused.items():
            if value:
                raise UsageError(f"{name} is given, which a bundle cannot follow; export the model as it is to be, and leave {name} out")
        if backend not in ("torch", "onnx"):
            raise UsageError(f"backend is {backend!r}, a bundle runs on ONNX Runtime; leave it out, or give 'onnx'")
        if path is None:
            raise UsageError("model_name_or_path is None, expected a bundle's folder; make one with `onnxport export`")
        self.runtime: Model = load(path, precision=precision, device="cpu" if device is None else str(device), threads=threads)
        self._longest = self.runtime.encoding().config.max_length
        self._reader: Encoder | None = None
        self.prompts: dict[str, str] = {}
        self.default_prompt_name: str | None = None

    @property
    def device(self) -> str:
        """The device that the model runs on: "cpu" or "cuda"."""
        return self.runtime.device

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of the longest text, special ones included; what is beyond is cut. None: no limit. It can be set."""
        return self._longest

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._longest, self._reader = None if value is None else whole("max_seq_length", value, 1), None

    def get_max_seq_length(self) -> int | None:
        """`max_seq_length`."""
        return self.max_seq_length

    def __getstate__(self) -> dict[str, Any]:
        """A model pickles as the path and the options of its bundle."""
        return {**self.__dict__, "_reader": None}

    def _texts(self) -> Encoder:
        """The bundle's encoder, but that it cuts long texts and reads empty ones. UsageError, TextError."""
        if self._reader is None:
            encoder = self.runtime.encoding()
            tokenizer = encoder.tokenizer
            if tokenizer is not None and self._longest is not None:
                tokenizer = tokenizer.truncating(self._longest)
            config = replace(encoder.config, max_length=None, truncate_dim=None)
            self._reader = replace(encoder, tokenizer=tokenizer, config=config, reads_empty=True)
        return self._reader

    def _set_prompts(self, prompts: Mapping[str, str | None] | None, default: str | None) -> None:
        self.prompts |= {name: text or "" for name, text in (prompts or {}).items()}
        self.default_prompt_name = default or self.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise UsageError(f"default_prompt_name is {default!r}, expected one of {self._prompt_names()}")

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """What stands before every text. UsageError: an unknown name."""
        name = self.default_prompt_name if name is None else name
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            raise UsageError(f"prompt_name is {name!r}, expected one of {self._prompt_names()}")
        return self.prompts[name]

    def _prompt_names(self) -> str:
        return ", ".join(self.prompts) or "the prompts, which are none"

    def _check_call(self, device: object, pool: object, others: Mapping[str, Any]) -> None:
        """UsageError for what a call cannot do."""
        if pool is not None or isinstance(device, list | tuple):
            raise UsageError("pool, or a list as device, asks for several processes; a bundle uses its threads: leave it out")
        if device is not None and str(device) != self.device:
            raise UsageError(f"device is {device!r}, this model was loaded on {self.device}; give device to the constructor")
        if unknown := [name for name in others if name != "task"]:  # `task` chooses among parts of a Router, which no bundle has
            raise UsageError(f"found the argument {unknown[0]}, which a bundle has no use for; leave it out")


def _with_prompt(encode: Callable[P, Any], *names: str) -> Callable[P, Any]:
    """`encode` with the first of these prompts that there is, where none is asked for."""
    signature = inspect.signature(encode)

    @functools.wraps(encode)
    def prompted(*args: P.args, **kwargs: P.kwargs) -> Any:
        given = signature.bind(*args, **kwargs)
        if given.arguments.get("prompt") is None and given.arguments.get("prompt_name") is None:
            given.arguments["prompt_name"] = next((name for name in names if name in given.arguments["self"].prompts), None)
        return encode(*given.args, **given.kwargs)

    prompted.__doc__ = f"`encode`, with the prompt named {' or '.join(names)} where none is asked for."
    return prompted


class SentenceTransformer(_BundleModel):
    """An embedding bundle with the interface of sentence_transformers.SentenceTransformer.

    model_name_or_path: the bundle's folder. precision: one of its variants, threads: of one operator, as in `onnxport.load`. device: None
    is the CPU. The other arguments, and the attributes prompts, default_prompt_name, similarity_fn_name, truncate_dim and max_seq_length,
    mean what they mean there. Results are NumPy arrays; tensors of torch where they are asked for and torch is installed.
    Errors: those of `onnxport.load`; UsageError names an argument that a bundle cannot follow.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: list[Any] | None = None,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        refused = {
            "modules": modules, "revision": revision, "model_kwargs": model_kwargs, "processor_kwargs": processor_kwargs,
            "config_kwargs": config_kwargs, "model_card_data": model_card_data,
        }  # fmt: skip
        super().__init__(model_name_or_path, device, precision, threads, refused, backend)
        expect(self.runtime.encoding(), "embedding", (embedding.STATE,))
        config = self.runtime.encoding().config
        self.prompts, self.default_prompt_name = {"query": "", "document": "", **config.prompts}, config.default_prompt
        self._set_prompts(prompts, default_prompt_name)
        self.truncate_dim = config.truncate_dim if truncate_dim is None else truncate_dim
        self._similarity_name = "cosine"
        self.similarity_fn_name = config.similarity or "cosine" if similarity_fn_name is None else similarity_fn_name

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Vectors float32 [texts, size] of texts, or of pairs of texts (tuples); of a single text [size].

        precision: of the vectors, "int8" and "uint8" by their least and greatest numbers, "binary" and "ubinary" packed bits of signs.
        output_value: "token_embeddings" gives a list of arrays [tokens, hidden] instead. convert_to_tensor, or neither that nor
        convert_to_numpy: tensors of torch, one or a list. Errors: UsageError, TextError, DataError (the model answers NaN).
        """
        inputs = kwargs.pop("sentences", None) if inputs is None else inputs
        self._check_call(device, pool, kwargs)
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise UsageError(f"output_value is {output_value!r}, expected 'sentence_embedding' or 'token_embeddings'")
        if precision not in EMBEDDING_PRECISIONS:
            raise UsageError(
                f"precision is {precision!r}, expected one of {', '.join(EMBEDDING_PRECISIONS)}; a variant goes to the constructor"
            )
        texts, single = _listed(inputs)
        before, size = self._prompt(prompt, prompt_name), self.truncate_dim if truncate_dim is None else truncate_dim
        if output_value == "token_embeddings":
            states = embedding.token_states(self._texts(), embedding.prefixed(before, texts), batch_size)
            return states[0] if single else states
        wishes = embedding.Wishes(before, None, normalize_embeddings, size)
        with progress_bar(bool(show_progress_bar)) as progress:
            vectors = embedding.encode(self._texts(), texts, batch_size, None, wishes, progress)
        found = _formed(quantized(vectors, precision) if texts else np.array([]), convert_to_numpy, convert_to_tensor)
        return found[0] if single else found

    encode_query = _with_prompt(encode, "query")
    encode_document = _with_prompt(encode, "document", "passage", "corpus")

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares vectors: "cosine", "dot", "euclidean" or "manhattan" (of these two the negative distance)."""
        return self._similarity_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        name = str(getattr(value, "value", value) or "cosine")  # SimilarityFunction's members have a value
        if name not in SIMILARITIES:
            raise UsageError(f"similarity_fn_name is {name!r}, expected one of {', '.join(SIMILARITIES)}")
        self._similarity_name = name

    def similarity(self, embeddings1: Vectors, embeddings2: Vectors) -> Any:
        """The similarity of each of the first vectors with each of the second: float [first, second], a tensor where one of them is one."""
        first, second = (np.atleast_2d(_array(vectors)) for vectors in (embeddings1, embeddings2))
        return _as_given(_compared(first, second, self._similarity_name), embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Vectors, embeddings2: Vectors) -> Any:
        """The similarity of each of the first vectors with the second one in its place: float [vectors]."""
        first, second = _array(embeddings1), _array(embeddings2)
        return _as_given(_in_pairs(first, second, self._similarity_name), embeddings1, embeddings2)

    def get_embedding_dimension(self) -> int | None:
        """Numbers of a vector; None where the graph does not say."""
        config, width = self.runtime.encoding().config, self.runtime.encoding().outputs[embedding.STATE][-1]
        arrays = [one["weight"] for kind, one in zip(config.layers, self.runtime.encoding().layers, strict=True) if kind.kind == "dense"]
        size = arrays[-1].shape[1] if arrays else len(config.poolings) * width if isinstance(width, int) else None
        return size if self.truncate_dim is None else self.truncate_dim if size is None else min(size, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int | None:
        """`get_embedding_dimension`, by its older name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Vectors have `truncate_dim` numbers within the block; None: all."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings


class CrossEncoder(_BundleModel):
    """A classification bundle that scores pairs of texts, with the interface of sentence_transformers.CrossEncoder.

    model_name_or_path: the bundle's folder. precision: one of its variants, threads: of one operator, as in `onnxport.load`. device: None
    is the CPU. activation_fn: what is made of logits, float32 [pairs, labels]; by default what the model's own files say, else the sigmoid
    of a single label. One of torch.nn is given tensors, any other function arrays. The rest means what it means there.
    Errors: those of `onnxport.load`; UsageError names an argument that a bundle cannot follow.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: Any = None,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        keep_in_fp32_modules: list[str] | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        refused = {
            "modules": modules, "revision": revision, "model_kwargs": model_kwargs, "processor_kwargs": processor_kwargs,
            "config_kwargs": config_kwargs, "model_card_data": model_card_data, "keep_in_fp32_modules": keep_in_fp32_modules,
        }  # fmt: skip
        super().__init__(model_name_or_path, device, precision, threads, refused, backend)
        expect(self.runtime.encoding(), "classification", (LOGITS,))
        if num_labels is not None and num_labels != self.num_labels:
            raise UsageError(f"num_labels is {num_labels}, this bundle has {self.num_labels}; leave it out")
        self._set_prompts(prompts, default_prompt_name)
        if max_length is not None:
            self.max_seq_length = max_length
        self.activation_fn = activation_fn or ACTIVATIONS[self.runtime.encoding().config.score_activation]

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        width = self.runtime.encoding().outputs[LOGITS][-1]
        return width if isinstance(width, int) else len(self.runtime.encoding().config.labels) or 1

    @property
    def max_length(self) -> int | None:
        """`max_seq_length`, by its older name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.max_seq_length = value

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores of pairs of texts: float32 [pairs], or [pairs, labels] where there are several labels; of a single pair one of these.

        convert_to_tensor, or neither that nor convert_to_numpy: tensors of torch, one or a list.
        Errors: UsageError, TextError, DataError (the model answers NaN).
        """
        inputs = kwargs.pop("sentences", None) if inputs is None else inputs
        activation_fn = kwargs.pop("activation_fct", None) if activation_fn is None else activation_fn
        kwargs.pop("num_workers", None)
        self._check_call(device, pool, kwargs)
        pairs, single = _listed_pairs(inputs)
        with progress_bar(bool(show_progress_bar)) as progress:
            prompted = embedding.prefixed(self._prompt(prompt, prompt_name), pairs)
            logits = text_logits(self._texts(), prompted, batch_size, None, progress)
        scores = np.array([])
        if logits:
            scores = _activated(activation_fn or self.activation_fn, np.stack(logits).astype(np.float32))
            scores = scores[:, 0] if self.num_labels == 1 and scores.ndim > 1 else scores
            scores = _softmax(scores) if apply_softmax and scores.ndim > 1 else scores
        found = _formed(scores, convert_to_numpy, convert_to_tensor)
        return found[0] if single else found

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        device: str | list[str] | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Documents of a query, best first: their `corpus_id` (place in the list), `score`, and `text` with return_documents."""
        if self.num_labels != 1:
            raise UsageError(f"rank is for models with one label, this one has {self.num_labels}; use predict")
        scores = self.predict(
            [(query, document) for document in documents], prompt_name, prompt, batch_size, show_progress_bar, activation_fn,
            device=device, pool=pool, chunk_size=chunk_size,
        )  # fmt: skip
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_k]
        texts = [{"text": document} if return_documents else {} for document in documents]
        return [{"corpus_id": i, "score": float(scores[i]), **texts[i]} for i in order]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row."""
    return np.stack([softmax(row) for row in logits])


def _identity(logits: np.ndarray) -> np.ndarray:
    return logits


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"identity": _identity, "sigmoid": _sigmoid, "softmax": _softmax}


def quantized(vectors: np.ndarray, precision: str) -> np.ndarray:
    """Vectors [texts, size] in fewer bits, as sentence-transformers' quantize_embeddings has them where nothing calibrates it.

    int8 and uint8: each column in 255 equal steps from its least to its greatest number. UsageError: a single vector has no such range.
    """
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)
    if len(vectors) == 1:
        raise UsageError(f"precision is {precision}, whose range cannot be told from a single vector; encode several texts together")
    least, greatest = vectors.min(0), vectors.max(0)
    step = (greatest - least) / 255
    places = np.clip(np.floor((vectors - least) / np.where(step == 0, 1, step)), 0, 255)
    return np.asarray(places.astype(np.uint8) if precision == "uint8" else (places - 128).astype(np.int8))


def _listed(inputs: Any) -> tuple[list[Text], bool]:
    """Texts, and whether a single one was given. UsageError."""
    if isinstance(inputs, str):
        return [inputs], True
    if not hasattr(inputs, "__iter__") or isinstance(inputs, Mapping | bytes):
        raise UsageError(f"inputs is {type(inputs).__name__}, expected a text or a list of texts")
    return list(inputs.tolist() if isinstance(inputs, np.ndarray) else inputs), False


def _listed_pairs(inputs: Any) -> tuple[list[Text], bool]:
    """Pairs, and whether a single one was given. UsageError."""
    found, single = _listed(inputs)
    if not single and found and not isinstance(found[0], list | tuple):  # one pair
        return [tuple(found)], True  # type: ignore[list-item]
    return [tuple(one) if isinstance(one, list | tuple) else one for one in found], single  # type: ignore[misc]


def _activated(function: Callable[[Any], Any], logits: np.ndarray) -> np.ndarray:
    if type(function).__module__.partition(".")[0] == "torch":
        return np.asarray(function(_torch("activation_fn").from_numpy(logits)).numpy())
    return np.asarray(function(logits))


def _array(vectors: Vectors) -> np.ndarray:
    """Vectors as an array of floats."""
    if isinstance(vectors, list | tuple):
        vectors = [_array(one) if _is_tensor(one) else one for one in vectors]
    found = np.asarray(vectors.detach().cpu().float().numpy() if _is_tensor(vectors) else vectors)
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY))


def _compared(first: np.ndarray, second: np.ndarray, name: str) -> np.ndarray:
    """[first, size], [second, size] → [first, second]."""
    if name in ("cosine", "dot"):
        return np.asarray(_unit(first) @ _unit(second).T if name == "cosine" else first @ second.T)
    found, rows = np.empty((len(first), len(second)), np.result_type(first, second)), max(1, _ROOM // max(1, second.size))
    for i in range(0, len(first), rows):
        found[i : i + rows] = _distance(first[i : i + rows, None] - second, name)
    return found


def _in_pairs(first: np.ndarray, second: np.ndarray, name: str) -> np.ndarray:
    """[vectors, size] twice → [vectors]."""
    if name in ("cosine", "dot"):
        return np.asarray((_unit(first) * _unit(second) if name == "cosine" else first * second).sum(-1))
    return _distance(first - second, name)


def _distance(difference: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(-np.linalg.norm(difference, ord=2 if name == "euclidean" else 1, axis=-1))


def _is_tensor(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _as_given(found: np.ndarray, *given: Vectors) -> Any:
    """A tensor where one of those given is one, or a list of them."""
    tensors = any(_is_tensor(one) or (isinstance(one, list | tuple) and len(one) and _is_tensor(one[0])) for one in given)
    return _torch("similarity of tensors").from_numpy(np.ascontiguousarray(found)) if tensors else found


def _formed(found: np.ndarray, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """An array, a tensor or a list of tensors, as they are asked for."""
    if convert_to_tensor:
        return _torch("convert_to_tensor=True").from_numpy(found)
    return found if convert_to_numpy else list(_torch("convert_to_numpy=False").from_numpy(found))


def _torch(purpose: str) -> Any:
    """torch. UsageError where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UsageError(f"{purpose} needs torch, which is not installed; take arrays, or install torch") from None
