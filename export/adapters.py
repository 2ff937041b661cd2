"""Adapters, in which users hand over the parts of a model of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn


@dataclass(kw_only=True, eq=False)
class Seq2Seq:
    """An encoder-decoder around `torch.nn.Transformer`, exported with cached decoding.

    `source_embedding`, `target_embedding`: nn.Embedding [vocabulary, d] (the target's defaults to the source's); `head`: nn.Linear d →
    vocabulary, None where the output shares the target table; `positions`: [max_length, d] tensor, parameter or nn.Embedding, added to
    source and target embeddings after these were multiplied by `embedding_scale`; tokenizers: path of a tokenizer.json, or a
    tokenizers.Tokenizer;
    `max_length`: positions the model can take (None: what `positions` holds, or no bound); `decoder_start_id` defaults to `bos_id`.
    """

    transformer: nn.Transformer
    source_embedding: nn.Embedding
    target_embedding: nn.Embedding | None = None
    head: nn.Linear | None = None
    positions: Tensor | nn.Embedding | None = None
    embedding_scale: float = 1.0
    tokenizer: str | Path | Tokenizer | None = None
    source_tokenizer: str | Path | Tokenizer | None = None
    target_tokenizer: str | Path | Tokenizer | None = None
    pad_id: int
    bos_id: int
    eos_id: int
    decoder_start_id: int | None = None
    max_length: int | None = None
    task: str | None = None
    name: str | None = None


@dataclass(kw_only=True, eq=False)
class CausalLM:
    """A decoder-only language model around `torch.nn.TransformerEncoder` with a causal mask, with a cache. Arguments as in `Seq2Seq`."""

    transformer: nn.TransformerEncoder
    embedding: nn.Embedding
    head: nn.Linear | None = None
    positions: Tensor | nn.Embedding | None = None
    embedding_scale: float = 1.0
    tokenizer: str | Path | Tokenizer | None = None
    pad_id: int
    bos_id: int
    eos_id: int
    max_length: int | None = None
    task: str | None = None
    name: str | None = None


@dataclass(kw_only=True, eq=False)
class Encoder:
    """A bidirectional encoder around `torch.nn.TransformerEncoder`.

    Without `head` it gives `last_hidden_state`, with one `logits`. `pooling` None keeps every position, "first" takes position 0 and
    "mean" the mean of the real positions, before the head.
    """

    transformer: nn.TransformerEncoder
    embedding: nn.Embedding
    head: nn.Linear | None = None
    pooling: str | None = None
    positions: Tensor | nn.Embedding | None = None
    embedding_scale: float = 1.0
    tokenizer: str | Path | Tokenizer | None = None
    pad_id: int = 0
    max_length: int | None = None
    task: str | None = None
    name: str | None = None


@dataclass(eq=False)
class Module:
    """Any module, traced as it is.

    `inputs`: example tensors by name (or in order); `dynamic`: input → axis → name of its size, axes of one name sharing one size;
    `outputs`: names of the output tensors in order.
    """

    module: nn.Module
    inputs: Mapping[str, Any] | Sequence[Any]
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    outputs: Sequence[str] | None = None
    name: str | None = None


Adapter = Seq2Seq | CausalLM | Encoder | Module
