"""The example's own PyTorch class: a translation model around `torch.nn.Transformer`.

This is what a user's code looks like before onnxport: plain PyTorch that knows nothing of export, but for `build` at the end.
`onnxport export model:build --out DIR`, run in this folder, exports it from code; `onnxport export examples/en-de`, from its files.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from onnxport.export import Seq2Seq

FOLDER = Path(__file__).parent


def sinusoidal_positions(length: int, size: int) -> Tensor:
    """Sine and cosine table [length, size] of "Attention Is All You Need", section 3.5."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-math.log(10000.0) / size))
    table = torch.zeros(length, size)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table


class TranslationModel(nn.Module):
    """Encoder-decoder with sinusoidal positions and one table for source, target and output embeddings."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config = config
        size = config["d_model"]
        names = ("d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dim_feedforward", "activation", "norm_first", "bias")
        settings = {name: config[name] for name in names}
        self.transformer = nn.Transformer(
            **settings, layer_norm_eps=config["layer_norm_eps"], dropout=config.get("dropout", 0.1), batch_first=True
        )
        self.embedding = nn.Embedding(config["source_vocab_size"], size, padding_idx=config["pad_id"])
        nn.init.normal_(self.embedding.weight, std=size**-0.5)
        self.dropout = nn.Dropout(config.get("dropout", 0.1))
        self.register_buffer("positions", sinusoidal_positions(config["max_length"], size), persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [batch, length] → hidden states [batch, length, d_model]."""
        return self.dropout(self.embedding(ids) * self.config["embedding_scale"] + self.positions[: ids.shape[1]])

    def encode(self, source: Tensor) -> Tensor:
        """Source ids [batch, source] → memory [batch, source, d_model]."""
        return self.transformer.encoder(self.embed(source), src_key_padding_mask=source == self.config["pad_id"])

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Target ids [batch, target] → logits [batch, target, vocabulary]."""
        causal = torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device), 1)
        padding = source == self.config["pad_id"]
        hidden = self.transformer.decoder(self.embed(target), memory, tgt_mask=causal, memory_key_padding_mask=padding)
        return hidden @ self.embedding.weight.T

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Teacher-forced logits [batch, target, vocabulary]."""
        return self.decode(target, self.encode(source), source)


@torch.no_grad()
def greedy(model: TranslationModel, source: Tensor, max_new_tokens: int) -> list[list[int]]:
    """Greedy translations of padded source ids [batch, source]; the lists hold neither bos nor eos."""
    bos, eos = model.config["bos_id"], model.config["eos_id"]
    memory = model.encode(source)
    target = torch.full((len(source), 1), bos)
    done = torch.zeros(len(source), dtype=torch.bool)
    for _ in range(max_new_tokens):
        token = model.decode(target, memory, source)[:, -1].argmax(-1)
        target = torch.cat([target, token.masked_fill(done, eos)[:, None]], 1)
        done |= token == eos
        if done.all():
            break
    rows = [row[1:].tolist() for row in target]
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def load(folder: Path = FOLDER) -> TranslationModel:
    """The trained model, in eval mode."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    model = TranslationModel(config)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["embedding.weight"] = weights.pop("source_embedding.weight")
    model.load_state_dict(weights)
    return model.eval()


def build() -> "Seq2Seq":
    """What `onnxport export model:build` calls: the parts of the model by name."""
    from onnxport.export import Seq2Seq

    model = load()
    return Seq2Seq(
        transformer=model.transformer,
        source_embedding=model.embedding,
        positions=model.positions,
        embedding_scale=model.config["embedding_scale"],
        tokenizer=FOLDER / "tokenizer.json",
        **{name: model.config[name] for name in ("pad_id", "bos_id", "eos_id", "max_length", "task")},
    )
