"""Embedding: texts become vectors, by what sentence-transformers' modules do behind a Transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import TextError, UsageError
from onnxport.progress import Progress, counted, silent
from onnxport.runtime.bundle.manifest import EncodingConfig, PooledLayer
from onnxport.runtime.encoder import Encoder, Text, Window, expect, finite, weighted

STATE = "last_hidden_state"
TINY = 1e-12  # of a length that vectors are divided by
_erf = np.vectorize(math.erf, otypes=[np.float64])

# hidden states [tokens, hidden] of a text, and the places of these tokens in it, from 0 → [hidden]; as in sentence-transformers
Pool = Callable[[np.ndarray, np.ndarray], np.ndarray]
POOL: dict[str, Pool] = {
    "mean": lambda hidden, places: hidden.mean(0),
    "cls": lambda hidden, places: hidden[0],
    "last": lambda hidden, places: hidden[-1],
    "max": lambda hidden, places: hidden.max(0),
    "mean_sqrt_len": lambda hidden, places: hidden.sum(0) / math.sqrt(len(hidden)),
    "weightedmean": lambda hidden, places: np.average(hidden, axis=0, weights=places + 1.0),
}
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # as torch.nn's
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(x / 2)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(x / 2)),
}


@dataclass(frozen=True)
class Wishes:
    """What a caller asks of vectors; see Model.encode. UsageError."""

    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool = False
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise UsageError(f"truncate_dim is {self.size!r}, expected a whole number from 1")
        for name, value in (("prompt", self.prompt), ("prompt_name", self.prompt_name)):
            if value is not None and not isinstance(value, str):
                raise UsageError(f"{name} is {type(value).__name__}, expected a text")

    def prefix(self, config: EncodingConfig) -> str:
        """What stands before every text: `prompt`, else the bundle's prompt of the asked name, else its default. UsageError."""
        if self.prompt is not None:
            return self.prompt
        name = config.default_prompt if self.prompt_name is None else self.prompt_name
        if name is None:
            return ""
        if name not in config.prompts:
            known = ", ".join(config.prompts) or "none"
            raise UsageError(f"prompt_name is {name!r}, this bundle's prompts are: {known}; give the prompt itself as prompt=")
        return config.prompts[name]


def encode(
    encoder: Encoder,
    texts: Sequence[Text],
    batch_size: int,
    stride: int | None,
    wishes: Wishes | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Vectors float32 [texts, size], pooled as the bundle says, and what its layers make of that.

    What is pooled of a text that is longer than the model is the mean of what is pooled of its windows, each weighted by its tokens,
    whatever the pooling (with mean pooling: the mean over the tokens of all windows); layers read that, and length 1 comes at the end.
    """
    wishes = wishes or Wishes()
    expect(encoder, "embedding", (STATE,))
    config, prefix = encoder.config, wishes.prefix(encoder.config)
    windows = encoder.windows(prefixed(prefix, texts), stride)
    if not windows:
        width = encoder.outputs[STATE][-1]
        return _finished(np.zeros((0, len(config.poolings) * width if isinstance(width, int) else 0)), encoder, wishes).astype(np.float32)
    prompted = 0 if config.include_prompt or not prefix else _prompt_tokens(encoder, prefix)
    firsts: dict[int, Window] = {}
    for window in windows:
        firsts.setdefault(window.owner, window)
    told, parts = counted(progress, "encoding windows"), []
    for done, (window, outputs) in enumerate(encoder.each(windows, batch_size), start=1):
        skip = prompted if window is firsts[window.owner] else 0
        if skip >= len(window):
            raise TextError(f"the prompt has {skip} tokens, which leaves no room for a text in {len(window)}; shorten it")
        hidden = finite(outputs[STATE][: len(window)], window.owner)
        parts.append((window.owner, len(window) - skip, _pooled(config.poolings, hidden, skip)))
        told(done, len(windows))
    return _finished(np.stack(weighted(parts, len(texts))), encoder, wishes).astype(np.float32)


def token_states(encoder: Encoder, texts: Sequence[Text], batch_size: int) -> list[np.ndarray]:
    """The hidden states of each text's tokens, float32 [tokens, hidden], special ones included; of the first window of a longer text."""
    expect(encoder, "embedding", (STATE,))
    found: dict[int, np.ndarray] = {}
    for window, outputs in encoder.each(encoder.windows(texts, None), batch_size):
        found.setdefault(window.owner, finite(outputs[STATE][: len(window)], window.owner))
    return [found[i] for i in range(len(texts))]


def prefixed(prefix: str, texts: Sequence[Text]) -> list[Text]:
    """Texts, and the first ones of pairs, behind a prompt."""
    return [prefix + one if isinstance(one, str) else (prefix + one[0], *one[1:]) if prefix else one for one in texts]


def vectors(encoder: Encoder, hidden: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [texts, size] of the hidden states [tokens, hidden] of each text, as `encode` makes them of texts without a prompt."""
    return _finished(np.stack([_pooled(encoder.config.poolings, states, 0) for states in hidden]), encoder, Wishes())


def _pooled(poolings: Sequence[str], hidden: np.ndarray, skip: int) -> np.ndarray:
    """[tokens, hidden], without the first `skip` tokens → [poolings * hidden]."""
    return np.concatenate([POOL[name](hidden[skip:], np.arange(skip, len(hidden))) for name in poolings])


def _prompt_tokens(encoder: Encoder, prompt: str) -> int:
    """Tokens of a prompt with the special tokens before it, not those behind it."""
    assert encoder.tokenizer is not None  # windows were made with it
    (found,) = encoder.tokenizer.read([(prompt.lower() if encoder.config.lower else prompt, None)])
    return len(found) - int(found.special_tokens_mask[-1] if found.special_tokens_mask else 0)


def _finished(pooled: np.ndarray, encoder: Encoder, wishes: Wishes) -> np.ndarray:
    """float64 [texts, pooled] through the bundle's layers, cut and brought to length 1 as the bundle and the caller say."""
    vectors = pooled
    for layer, arrays in zip(encoder.config.layers, encoder.layers, strict=True):
        vectors = _layer(vectors, layer, arrays)
    vectors = _unit(vectors) if encoder.config.normalize else vectors
    vectors = vectors[:, : wishes.size or encoder.config.truncate_dim]  # None keeps all
    return _unit(vectors) if wishes.normalize else vectors


def _layer(x: np.ndarray, layer: PooledLayer, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [texts, inputs] → [texts, outputs]."""
    if layer.kind == "normalize":
        return _unit(x)
    if layer.kind == "norm":
        centred = x - x.mean(1, keepdims=True)
        return np.asarray(centred / np.sqrt((centred**2).mean(1, keepdims=True) + layer.eps) * arrays["weight"] + arrays["bias"])
    y = ACTIVATIONS[layer.activation](x @ arrays["weight"] + arrays.get("bias", 0.0))
    if layer.residual:
        y = y + (x @ arrays["residual"] if "residual" in arrays else x)
    return np.asarray(y)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY))
