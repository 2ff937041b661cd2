"""A plain PyTorch decode with a key/value cache around `torch.nn.Transformer`: what a careful user would write by hand.

It uses the weights of the example's own model, pre- or post-norm, and nothing but eager PyTorch; the yardstick for the speed of a bundle.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CachedDecoder:
    """Greedy decoding of a batch of one or more sources, one token a step.

    model: an object with `encode(ids)`, `embedding`, `positions`, `config` and `transformer`, as in examples/en-de/model.py.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers: list[nn.TransformerDecoderLayer] = list(model.transformer.decoder.layers)
        self.heads = model.config["nhead"]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _cross(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the source [batch, heads, source, head size], once a text."""
        result = []
        for layer in self.layers:
            attention = layer.multihead_attn
            size = attention.embed_dim
            both = F.linear(memory, attention.in_proj_weight[size:], attention.in_proj_bias[size:])
            keys, values = both.chunk(2, -1)
            result.append((self._split(keys), self._split(values)))
        return result

    @torch.inference_mode()
    def generate(self, source: Tensor, new_tokens: int, stop_at_eos: bool = True) -> Tensor:
        """Source ids [batch, source] without padding → new ids [batch, at most new_tokens]."""
        config, bos = self.model.config, self.model.config["bos_id"]
        cross = self._cross(self.model.encode(source))
        caches: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        token, output = torch.full((len(source), 1), bos), []
        for step in range(new_tokens):
            x = self.model.embedding(token) * config["embedding_scale"] + self.model.positions[step]
            for index, layer in enumerate(self.layers):
                x = self._layer(layer, x, index, caches, cross[index])
            if self.model.transformer.decoder.norm is not None:
                x = self.model.transformer.decoder.norm(x)
            token = (x[:, -1] @ self.model.embedding.weight.T).argmax(-1, keepdim=True)
            output.append(token)
            if stop_at_eos and bool((token == config["eos_id"]).all()):
                break
        return torch.cat(output, 1)

    def _layer(self, layer: nn.TransformerDecoderLayer, x: Tensor, index: int, caches: list[Any], cross: tuple[Tensor, Tensor]) -> Tensor:
        before = layer.norm_first
        y = layer.norm1(x) if before else x
        x = x + self._self_attention(layer.self_attn, y, index, caches)
        x = x if before else layer.norm1(x)
        y = layer.norm2(x) if before else x
        x = x + self._cross_attention(layer.multihead_attn, y, cross)
        x = x if before else layer.norm2(x)
        y = layer.norm3(x) if before else x
        x = x + layer.linear2(layer.activation(layer.linear1(y)))
        return x if before else layer.norm3(x)

    def _self_attention(self, attention: nn.MultiheadAttention, x: Tensor, index: int, caches: list[Any]) -> Tensor:
        query, key, value = map(self._split, F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1))
        if caches[index] is not None:
            key, value = torch.cat([caches[index][0], key], 2), torch.cat([caches[index][1], value], 2)
        caches[index] = key, value
        return attention.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _cross_attention(self, attention: nn.MultiheadAttention, x: Tensor, cross: tuple[Tensor, Tensor]) -> Tensor:
        size = attention.embed_dim
        query = self._split(F.linear(x, attention.in_proj_weight[:size], attention.in_proj_bias[:size]))
        return attention.out_proj(F.scaled_dot_product_attention(query, *cross).transpose(1, 2).flatten(2))
