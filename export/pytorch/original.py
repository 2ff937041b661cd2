"""Originals of torch.nn.Transformer: the user's own modules as functions of ids, which give the golden answers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.encoder import pool


def causal_mask(length: int) -> Tensor:
    """bool [length, length], true where a query may NOT look (PyTorch's convention)."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def embed(ids: Tensor, table: nn.Embedding, positions: Tensor | None, scale: float) -> Tensor:
    """int64 [batch, length] → [batch, length, d]."""
    x = table(ids) * scale
    return x if positions is None else x + positions[: ids.shape[1]]


def answer_rows(table: nn.Embedding, head: nn.Linear | None) -> int:
    """Ids that can be both answered and taken: the smaller of the head's and the table's rows."""
    return int(table.num_embeddings if head is None else min(table.num_embeddings, head.out_features))


class OriginalSeq2Seq:
    """`torch.nn.Transformer` with the embeddings, positions and head around it."""

    def __init__(
        self,
        transformer: nn.Transformer,
        source: nn.Embedding,
        target: nn.Embedding,
        head: nn.Linear | None,
        positions: Tensor | None,
        scale: float,
    ) -> None:
        self.transformer, self.source, self.target, self.head, self.positions, self.scale = (
            transformer,
            source,
            target,
            head,
            positions,
            scale,
        )
        self.modules = [module for module in (transformer, source, target, head) if module is not None]
        self.source_rows, self.target_rows = source.num_embeddings, answer_rows(target, head)

    def _turn(self, x: Tensor) -> Tensor:
        return x if self.transformer.batch_first else x.transpose(0, 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden) if self.head is not None else F.linear(hidden, self.target.weight)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 and int32 [batch, source] → memory [batch, source, d]."""
        x = self._turn(embed(ids, self.source, self.positions, self.scale))
        return self._turn(self.transformer.encoder(x, src_key_padding_mask=mask == 0))

    def decode(self, target_ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """int64 [batch, target], memory and mask as in `encode` → logits [batch, target, vocabulary]."""
        x = self._turn(embed(target_ids, self.target, self.positions, self.scale))
        y = self.transformer.decoder(x, self._turn(memory), tgt_mask=causal_mask(target_ids.shape[1]), memory_key_padding_mask=mask == 0)
        return self._logits(self._turn(y))

    def forward(self, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
        """Teacher-forced logits [batch, target, vocabulary] through the module's own forward."""
        source = self._turn(embed(ids, self.source, self.positions, self.scale))
        target = self._turn(embed(target_ids, self.target, self.positions, self.scale))
        hidden = self.transformer(
            source,
            target,
            tgt_mask=causal_mask(target_ids.shape[1]),
            src_key_padding_mask=mask == 0,
            memory_key_padding_mask=mask == 0,
        )
        return self._logits(self._turn(hidden))


class OriginalEncoder:
    """`torch.nn.TransformerEncoder` with embedding, positions and head: causal or bidirectional."""

    def __init__(
        self,
        transformer: nn.TransformerEncoder,
        embedding: nn.Embedding,
        head: nn.Linear | None,
        positions: Tensor | None,
        scale: float,
        pooling: str | None = None,
    ) -> None:
        self.transformer, self.embedding, self.head, self.positions, self.scale = transformer, embedding, head, positions, scale
        self.pooling, self.rows = pooling, answer_rows(embedding, head)
        self.modules = [module for module in (transformer, embedding, head) if module is not None]

    def _run(self, ids: Tensor, **masks: Tensor) -> Tensor:
        first = self.transformer.layers[0].self_attn.batch_first
        x = embed(ids, self.embedding, self.positions, self.scale)
        y = self.transformer(x if first else x.transpose(0, 1), **masks)
        return y if first else y.transpose(0, 1)

    def causal(self, ids: Tensor, last: int | None = None) -> Tensor:
        """int64 [batch, length] → logits [batch, length or `last`, vocabulary]; rows are padded on the right, where nothing real looks."""
        hidden = self._run(ids, mask=causal_mask(ids.shape[1]))
        hidden = hidden if last is None else hidden[:, -last:]
        return self.head(hidden) if self.head is not None else F.linear(hidden, self.embedding.weight)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 [batch, length] both → hidden states or logits, pooled where asked."""
        x = pool(self._run(ids, src_key_padding_mask=mask == 0), mask, self.pooling)
        return x if self.head is None else self.head(x)
