"""What a folder of Hugging Face is exported as: the kind of its model, its graphs, and the tensors that a bundle holds.

Names tell it, those of the class in config.json and of the tensors: transformers, which knows, takes long to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from onnxport.build.estimate import weights
from onnxport.build.estimate.weights import Tensor
from onnxport.errors import UsageError
from onnxport.export.config_checks import named_class
from onnxport.export.sentence_transformers import has_modules, transformer_folder
from onnxport.files import MOST, read_regular

Kind = Literal["causal", "seq2seq", "encoder"]
ROLES: dict[str, tuple[str, ...]] = {"causal": ("decoder",), "seq2seq": ("encoder", "decoder"), "encoder": ("encoder",)}
CAUSAL = ("ForCausalLM", "LMHeadModel")  # end the names of classes that write on
MASKED = "ForMaskedLM"
POOLED = ("ForSequenceClassification", "ForMultipleChoice")
AT_ONCE = (MASKED, *POOLED, "ForTokenClassification", "ForQuestionAnswering")  # of those whose heads read a text once
BARE = ("EncoderModel", "ForPreTraining", "ForNextSentencePrediction", "Model")  # without a head, or with one for training
TOKENS = ("embed_tokens.weight", "wte.weight")  # tables of tokens, as decoders call them
SHARED = "shared.weight"  # as encoder-decoders call that of both sides
INPUTS = (*TOKENS, SHARED, "word_embeddings.weight", "word_embedding.weight", "tok_embeddings.weight", "embeddings.weight")
HEAD = "lm_head.weight"
SCORES = (HEAD, "decoder.weight", "vocab_projector.weight", "generator_lm_head.weight", "pred_layer.proj.weight")
POOLER, NEXT_SENTENCE = re.compile(r"(^|\.)pooler\."), re.compile(r"^cls\.seq_relationship\.")
HEADS = re.compile(  # of classes whose other names begin with no name of their own
    r"^(cls|lm_head|classifier|pre_classifier|qa_outputs|vocab_\w+|predictions|\w+_predictions|pred_layer|head|decoder)\."
)
PLACES = re.compile(r"(^|[._])(wpe|position\w*|embed_positions|relative\w*|token_type\w*|\w*distance\w*)[._]")
NUMBER = re.compile(r"\.(\d+)\.")
SIDE, CROSS = re.compile(r"^(model\.)?(encoder|decoder)\."), re.compile(r"\.(encoder_attn\.[kv]_proj|EncDecAttention\.[kv])\.")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS, POSITIONS = ("hidden_size", "d_model", "n_embd", "dim"), "max_position_embeddings"


@dataclass(frozen=True)
class Model:
    """A folder's model.

    name: of its class; of an encoder "" where hidden states are asked for. tensors: of floats that the bundle holds, tied ones once.
    mapped: weights are read from their files whenever they are asked for. folder: where config.json is. whole: sentence-transformers'
    folder around it, else itself. embeds: such files say that its hidden states are pooled.
    """

    kind: Kind
    name: str
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    mapped: bool
    folder: Path
    whole: Path
    embeds: bool = False

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
        return len(tensor.shape) == 2 and tensor.name.endswith((*INPUTS, *SCORES))

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
        inputs = tensor.name.endswith(INPUTS)
        scored = inputs and not any(other.name.endswith(SCORES) and self.is_table(other) for other in self.tensors)
        return max(1, len(self._roles_of(tensor))) + (1 if scored else 0)

    def copies(self, tensor: Tensor) -> int:
        """How often a graph in float32 holds it: the head of an encoder that reads a tied table holds it once more, turned."""
        return self.uses(tensor) if self.kind == "encoder" else 1

    def float32(self, role: str | None = None) -> int:
        """Bytes of the tensors of a graph, or of all, in float32."""
        return 4 * sum(tensor.numbers * self.copies(tensor) for tensor in (self.tensors if role is None else self.of(role)))

    def layers(self, role: str) -> int:
        """Layers of a graph, by the names of its tensors and, of a single graph, by the config."""
        found = [int(match[1]) + 1 for tensor in self.of(role) if (match := NUMBER.search(tensor.name))]
        return max([*found, self.number(*LAYERS) if len(self.roles) == 1 else 0])

    @property
    def made_positions(self) -> int:
        """Numbers of tables of positions that no file holds: rotary or sinusoidal ones."""
        positions = self.number(POSITIONS)
        if self.kind == "causal":
            heads = self.number("num_attention_heads")
            return positions * (self.number("head_dim") or (self.width // heads if heads else 0))
        if self.kind == "encoder" or any(PLACES.search(tensor.name) for tensor in self.tensors):
            return 0
        return positions * self.width

    def _roles_of(self, tensor: Tensor) -> Sequence[str]:
        if self.kind != "seq2seq":
            return self.roles
        if (tensor.name.endswith((SHARED, *TOKENS)) and self._one_table) or CROSS.search(tensor.name):
            return self.roles if CROSS.search(tensor.name) is None else self.roles[:1]  # the encoder's graph makes keys and values
        side = SIDE.match(tensor.name)
        return (side[2],) if side else self.roles[1:]

    @cached_property
    def _one_table(self) -> bool:
        return sum(tensor.name.endswith((SHARED, *TOKENS)) for tensor in self.tensors) == 1


def read(source: Any, allow_pickle: bool = False, task: str | None = None) -> Model:
    """The model of a folder.

    Raises:
        UsageError: the source is no folder of Hugging Face with plain weights, or its class is none whose files can be told.
        CheckpointError: files are missing, damaged, or pickled where that is not allowed.
    """
    whole = Path(source) if isinstance(source, str | Path) else Path()
    if not isinstance(source, str | Path) or not whole.is_dir():
        raise _refused(f"{source} is no folder")
    folder = transformer_folder(whole)
    if not (folder / "config.json").is_file() or not weights.has_weights(folder):
        raise _refused(f"{source} is no folder with config.json and {weights.SAFETENSORS} or {weights.PICKLE}")
    config = json.loads(read_regular(folder / "config.json", MOST))
    if not isinstance(config, dict) or "architecture" in config:
        raise _refused(f"{source} is no folder of Hugging Face")
    if config.get("quantization_config"):
        raise _refused(f"{source} holds weights that are quantized already")
    headers = weights.read(folder, allow_pickle)
    embeds = has_modules(whole)
    kind, name, tensors = _kind(config, headers.tensors, embeds, source), named_class(config) or "", list(headers.tensors)
    if kind == "encoder":
        head = not embeds and not (task == "embedding" and name.endswith(MASKED)) and _has_head(name, config, tensors)
        name, tensors = (name, _with_head(name, tensors)) if head else ("", _without_head(name, config, tensors))
    return Model(kind, name, config, tuple(_once(kind, config, tensors)), _mapped(kind, headers), folder, whole, embeds)


def _refused(what: str) -> UsageError:
    return UsageError(f"--dry-run: {what}; it tells of folders of Hugging Face with plain weights: leave --dry-run out")


def _mapped(kind: Kind, headers: weights.Headers) -> bool:
    """Whether an export reads weights from their files whenever it asks for them, and holds no copy in float32."""
    return kind == "causal" and not headers.pickled and all(tensor.width == 2 for tensor in headers.tensors)


def _kind(config: Mapping[str, Any], tensors: Iterable[Tensor], embeds: bool, source: Any) -> Kind:
    """UsageError: the class is of none of the kinds."""
    name, both = named_class(config), bool(config.get("is_encoder_decoder"))
    if embeds:
        return "encoder"
    if name is not None and name.endswith(CAUSAL):
        return "causal"
    if both and not str(name).endswith((*AT_ONCE, "EncoderModel")):
        return "seq2seq"
    if (name is None or name.endswith((*AT_ONCE, *BARE))) and config.get("vocab_size"):
        writes = name is None or (name.endswith("Model") and config.get("tie_word_embeddings"))
        return "causal" if writes and any(tensor.name.endswith((*TOKENS, HEAD)) for tensor in tensors) else "encoder"
    raise _refused(f"{source} holds a {name!s:.80}, expected a language model, an encoder of texts or an encoder-decoder")


def _has_head(name: str, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> bool:
    """Whether a class has a head, and the folder the tensors of one with a mask: many folders of embedding models have none."""
    if not name.endswith(MASKED):
        return name.endswith(AT_ONCE)
    base = _base(config, tensors)
    return bool(base) and not all(tensor.name.startswith(base) for tensor in tensors)


def _with_head(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a class with a head reads."""
    unread = [NEXT_SENTENCE] if name.endswith(POOLED) else [NEXT_SENTENCE, POOLER]
    return [tensor for tensor in tensors if not any(one.search(tensor.name) for one in unread)]


def _without_head(name: str, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that hidden states are made of."""
    base = _base(config, tensors)
    unread = [POOLER, re.compile(rf"^(?!{re.escape(base)})") if base else HEADS]
    if config.get("is_encoder_decoder"):
        unread.append(re.compile(r"^decoder\."))
    return [tensor for tensor in tensors if not any(one.search(tensor.name) for one in unread)]


def _base(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """The start of the names of what is no head: what has both layers and a row for each token; "" where the names have none."""
    rows = config.get("vocab_size")
    starts = dict.fromkeys(tensor.name.partition(".")[0] + "." for tensor in tensors)
    for start in starts:
        inside = [tensor for tensor in tensors if tensor.name.startswith(start)]
        table = any(len(tensor.shape) == 2 and tensor.shape[0] == rows for tensor in inside)
        if table and any(NUMBER.search(tensor.name) for tensor in inside):
            return start
    return ""


def _once(kind: Kind, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors without the further names of a table that is tied. transformers ties all but decoders' by itself."""
    tied = config.get("tie_word_embeddings", kind != "causal")
    shared = next((tensor for tensor in tensors if tensor.name.endswith(SHARED)), None)
    sides = [tensor for tensor in tensors if tensor.name.endswith(TOKENS)]
    one = config.get("share_encoder_decoder_embeddings", True) and len({tensor.shape for tensor in sides}) == 1
    seen = shared or (sides[0] if kind != "causal" and one and sides else None)
    inputs = {tensor.shape for tensor in tensors if tensor.name.endswith(INPUTS)}
    for tensor in tensors:
        if tied and tensor.name.endswith(SCORES) and len(tensor.shape) == 2 and tensor.shape in inputs:
            continue
        if seen is not None and tensor is not seen and tensor.name.endswith(TOKENS) and tensor.shape == seen.shape:
            continue
        yield tensor
