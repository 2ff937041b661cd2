"""A translation model that is cheap to train and can then be widened to Marian-base shapes without changing its answers.

Its hidden state is Marian-base's, 512 wide, with Marian-base's positions; but every projection reads the means of four neighbouring
columns, works 128 wide, and writes each result to four neighbours. Written out in full, the copies are a plain Marian-base layer: `unfold`.
LayerNorm has weight 1 and bias 0, so that a layer that adds nothing may be put between two layers of such a model.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

COPIES = 4


def base_config(vocabulary: int, layers: int) -> MarianConfig:
    """Marian-base (d 512, ff 2048, 8 heads of 64, swish), `layers` on either side; </s> is 0, padding is last and starts the decoder."""
    pad = vocabulary - 1
    return MarianConfig(
        vocab_size=vocabulary,
        decoder_vocab_size=vocabulary,
        d_model=512,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        dropout=0.0,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        bos_token_id=0,
        forced_eos_token_id=None,
    )


class Reads(nn.Linear):
    """A projection of [..., 512] that sees the mean of each group of neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(-1, (-1, COPIES)).mean(-1))

    def unfold(self) -> tuple[Tensor, Tensor]:
        """weight and bias of the wide projection; the whole narrow result comes COPIES times, one behind the other."""
        return self.weight.repeat_interleave(COPIES, 1).div(COPIES).repeat(COPIES, 1), self.bias.repeat(COPIES)


class Writes(nn.Linear):
    """A projection to [..., 512] that gives each group of neighbours one value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).repeat_interleave(COPIES, -1)

    def unfold(self) -> tuple[Tensor, Tensor]:
        """weight and bias of the wide projection, which takes what `Reads.unfold` makes."""
        return self.weight.repeat(1, COPIES).div(COPIES).repeat_interleave(COPIES, 0), self.bias.repeat_interleave(COPIES)


class Table(nn.Embedding):
    """Token embeddings, shared by both sides and the head; a row's values come COPIES times each."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).repeat_interleave(COPIES, -1)

    def unfold(self) -> Tensor:
        """The wide table."""
        return self.weight.repeat_interleave(COPIES, 1)


class Head(nn.Module):
    """Logits against the same table: the wide product is COPIES times that of the means."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.unflatten(-1, (-1, COPIES)).mean(-1) * COPIES, self.table.weight)


PARTS = {"q_proj": Reads, "k_proj": Reads, "v_proj": Reads, "fc1": Reads, "out_proj": Writes, "fc2": Writes}


def narrow(vocabulary: int, layers: int = 3) -> MarianMTModel:
    """An untrained model in which only projections and token embeddings are trained."""
    model = MarianMTModel(base_config(vocabulary, layers))
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in PARTS:
            part = PARTS[leaf](*(size // COPIES for size in (module.in_features, module.out_features)))
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
            setattr(model.get_submodule(parent), leaf, part)
    table = Table(vocabulary, model.config.d_model // COPIES, padding_idx=vocabulary - 1)
    nn.init.normal_(table.weight, std=0.04)
    model.model.shared = model.model.encoder.embed_tokens = model.model.decoder.embed_tokens = table
    model.lm_head = Head(table)
    clear_padding(model)
    return model


@torch.no_grad()
def clear_padding(model: MarianMTModel) -> None:
    """Marian's decoder starts from a zero embedding: that of the padding, which the tied head would otherwise train."""
    model.get_input_embeddings().weight[model.config.pad_token_id] = 0


def load_narrow(folder: Path) -> MarianMTModel:
    """The model of a folder that train_narrow.py wrote, as far as it is trained."""
    model = narrow(len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))))
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    return model
