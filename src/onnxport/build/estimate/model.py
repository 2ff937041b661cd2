"""A model as its folder tells of it: its kind, its graphs, and the tensors that each of them holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from onnxport.build.estimate.weights import Tensor
from onnxport.export.families import MODULES

Kind = Literal["causal", "seq2seq", "encoder"]
ROLES: dict[str, tuple[str, ...]] = {"causal": ("decoder",), "seq2seq": ("encoder", "decoder"), "encoder": ("encoder",)}
MASKED, POOLED = "ForMaskedLM", ("ForSequenceClassification", "ForMultipleChoice")  # end the names of classes
TOKENS = ("embed_tokens.weight", "wte.weight")  # tables of tokens, as decoders call them
SHARED = "shared.weight"  # as encoder-decoders call that of both sides
TABLE = re.compile(r"(^|\.)(embed_tokens|wte|shared|word_embeddings?|tok_embeddings|embeddings)\.weight$")
SCORES = re.compile(r"(^|\.)(lm_head|decoder|vocab_projector|generator_lm_head|pred_layer\.proj)\.weight$")  # of tokens
PLACES = re.compile(r"(^|[._])(wpe|position\w*|embed_positions|relative\w*|token_type\w*|\w*distance\w*)[._]")
ENCODERS = ("bert", "distilbert", "roberta", "xlnet")  # modules of families that are encoders
NUMBER = re.compile(r"\.(\d+)\.")
SIDE, CROSS = re.compile(r"^(model\.)?(encoder|decoder)\."), re.compile(r"\.(encoder_attn\.[kv]_proj|EncDecAttention\.[kv])\.")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS, POSITIONS = ("hidden_size", "d_model", "n_embd", "dim"), "max_position_embeddings"


@dataclass(frozen=True)
class Model:
    """A folder's model.

    name: of its class; of an encoder "" where hidden states are asked for. tensors: of floats that the bundle holds, tied ones once.
    held: bytes of weights that are in memory; all others are read from their files whenever they are asked for. folder: where config.json
    is. whole: sentence-transformers' folder around it, else itself. embeds: such files say that its hidden states are pooled.
    """

    kind: Kind
    name: str
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    held: int
    folder: Path
    whole: Path
    embeds: bool = False

    @property
    def traced(self) -> bool:
        """Whether it is of no family whose model is written anew: the class's own code is traced."""
        module = MODULES.get(str(self.config.get("model_type")))
        return module is None or (self.kind == "encoder" and module not in ENCODERS)

    @property
    def shifts(self) -> bool:
        """Whether an encoder-decoder reads a text on both sides and answers at once: its decoder's ids are made inside of the graph."""
        return self.kind == "encoder" and bool(self.config.get("is_encoder_decoder")) and bool(self.name)

    @property
    def tokenizer(self) -> Path | None:
        """Its tokenizer.json; None without one."""
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    @property
    def roles(self) -> tuple[str, ...]:
        """Of its graphs."""
        return ROLES[self.kind]

    @property
    def parameters(self) -> int:
        """Numbers of all tensors."""
        return sum(tensor.numbers for tensor in self.tensors)

    @cached_property
    def width(self) -> int:
        """Numbers of a token between the layers; 0 where the config has none of its own."""
        return self.number(*WIDTHS)

    def number(self, *names: str) -> int:
        """The first whole number that config.json has under some names, else 0."""
        found = (self.config.get(name) for name in names)
        return next((value for value in found if isinstance(value, int) and not isinstance(value, bool) and value > 0), 0)

    def ends(self, *names: str) -> bool:
        """Whether its class's name ends so."""
        return self.name.endswith(names)

    def is_table(self, tensor: Tensor) -> bool:
        """Whether it has a row for each token, or scores each."""
        return len(tensor.shape) == 2 and any(one.search(tensor.name) for one in (TABLE, SCORES))

    def takes_schemes(self, tensor: Tensor) -> bool:
        """Whether plans name it: a matrix that multiplies or is looked up by token ids."""
        return tensor.is_matrix and PLACES.search(tensor.name) is None

    def of(self, role: str) -> list[Tensor]:
        """The tensors of a graph; a shared table is in two."""
        return [tensor for tensor in self.tensors if role in self._roles_of(tensor)]

    def uses(self, tensor: Tensor) -> int:
        """How often graphs name a tensor: a table may be looked up on both sides, and score tokens."""
        if self.kind == "encoder" and not self.ends(MASKED):
            return 1
        scored = TABLE.search(tensor.name) and not any(SCORES.search(other.name) and self.is_table(other) for other in self.tensors)
        return max(1, len(self._roles_of(tensor))) + (1 if scored else 0)

    def copies(self, tensor: Tensor) -> int:
        """How often a graph in float32 holds it: the head of an encoder that is traced holds a tied table once more, turned."""
        return self.uses(tensor) if self.kind == "encoder" and self.traced else 1

    def float32(self, role: str | None = None) -> int:
        """Bytes of the tensors of a graph, or of all, in float32."""
        return 4 * sum(tensor.numbers * self.copies(tensor) for tensor in (self.tensors if role is None else self.of(role)))

    def layers(self, role: str) -> int:
        """Layers of a graph, by the names of its tensors and, of a single graph, the config: some share their weights."""
        names = [tensor.name for tensor in self.of(role) if CROSS.search(tensor.name) is None]
        found = {name[: match.end()] for name in names if (match := NUMBER.search(name))}
        return max(len(found), self.number(*LAYERS) if len(self.roles) == 1 else 0)

    @property
    def made_positions(self) -> int:
        """Numbers of tables of positions that no file holds: rotary or sinusoidal ones."""
        if self.kind == "encoder" or any(PLACES.search(tensor.name) for tensor in self.tensors):
            return 0
        heads = self.number("num_attention_heads")
        head = self.number("head_dim") or (self.width // heads if heads else 0)
        return self.number(POSITIONS) * (self.width if self.kind == "seq2seq" else head)

    def _roles_of(self, tensor: Tensor) -> Sequence[str]:
        if self.kind != "seq2seq":
            return self.roles
        if CROSS.search(tensor.name):
            return self.roles[:1]  # the encoder's graph makes keys and values
        if tensor.name.endswith((SHARED, *TOKENS)) and self._one_table:
            return self.roles
        side = SIDE.match(tensor.name)
        return (side[2],) if side else self.roles[1:]

    @cached_property
    def _one_table(self) -> bool:
        return sum(tensor.name.endswith((SHARED, *TOKENS)) for tensor in self.tensors) == 1
