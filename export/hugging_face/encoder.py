"""Encoders of Hugging Face as transformers loads them, described for the canonical model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from onnxport.errors import CheckpointError
from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.canonical.load_weights import HeadParts, StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import WeightTable, existing
from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, integer, named_class, number, one_of
from onnxport.export.deferred import parameter
from onnxport.export.description import EncoderModel
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, IGNORED, always, architecture_problems, read_config
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.generation_settings import KNOWN
from onnxport.export.hugging_face.original import OneChoice, TransformersEncoder
from onnxport.export.sentence_transformers import LABELLED, NEWER, OLDER, PROBLEMS, TextSettings, classifying
from onnxport.runtime.bundle.manifest import EncodingConfig

COMMON: dict[str, Key] = {
    "vocab_size": Key(integer(1, ROWS), None),
    "max_position_embeddings": Key(integer(1, LENGTH), None),
    "pad_token_id": Key(integer(0, ROWS), None),
    "num_labels": Key(integer(1, ROWS), None),
    "problem_type": Key(one_of(None, *PROBLEMS), None),
    "is_decoder": always(False),
    "is_encoder_decoder": always(False),
    "add_cross_attention": always(False),
    "cross_attention_hidden_size": always(None),
    "pruned_heads": always({}, None),
    "tie_encoder_decoder": always(False),
    "auto_map": always(None, {}),
    **dict.fromkeys((NEWER, OLDER), Key(lambda value: None, None)),  # see `sentence_transformers.problem`
}
SIZED: dict[str, Key] = {  # as most families call them
    "hidden_size": Key(integer(1, WIDTH), None),
    "num_hidden_layers": Key(integer(1, DEPTH), None),
    "num_attention_heads": Key(integer(1, WIDTH), None),
    "intermediate_size": Key(integer(1, 16 * WIDTH), None),
    "hidden_act": Key(one_of(*ACTIVATIONS), None),
    "type_vocab_size": Key(integer(0, ROWS), None),
    "layer_norm_eps": Key(number(0), None),
    "position_embedding_type": always("absolute", None),
}
TRAINING = frozenset(  # of training, or of heads that are left out
    """attention_probs_dropout_prob hidden_dropout_prob initializer_range tie_word_embeddings directionality pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type type_vocab_size language name""".split()
)
FILL, CHOICE = "fill-mask", "multiple-choice"
OPTIONAL_TENSORS = (r"(^|\.)position_ids$", r"(^|\.)token_type_ids$")  # buffers that older versions saved


@dataclass(frozen=True)
class HeadNames:
    """A head of transformers: its modules by full name; see HeadParts. pooling: of what it reads.

    activation: None for that of the layers, as the config says. unread: of tensors that the class does not read.
    """

    task: str
    out: str
    pooling: str | None = None
    dense: str | None = None
    activation: str | None = "tanh"
    split: bool = False
    norm: str | None = None
    unread: tuple[str, ...] = ()


POOLER = r"(^|\.)pooler\."
QUESTIONS = HeadNames("question-answering", "qa_outputs", split=True, unread=(POOLER,))
TOKENS = HeadNames("token-classification", "classifier", unread=(POOLER,))


def masked(path: str, dense: str, norm: str, out: str, activation: str | None = None, unread: tuple[str, ...] = ()) -> HeadNames:
    """A head that gives a score for each token of the vocabulary; `path` stands before the names of its modules."""
    return HeadNames(FILL, path + out, dense=path + dense, activation=activation, norm=path + norm, unread=(POOLER, *unread))


@dataclass(frozen=True)
class EncoderFamily:
    """An encoder family of transformers.

    base: the encoder's name in classes with a head. names: config's attributes for `activation`. heads: class → head, None where it gives
    hidden states. bare: classes whose heads are for training and left out. paths: below the base, `tokens`, `positions`, `types` (may be
    missing), `norm` and `layers`. counted: positions are counted without the padding's id and begin behind it.
    """

    model_type: str
    base: str
    table: WeightTable
    heads: Mapping[str, HeadNames | None]
    bare: tuple[str, ...]
    paths: Mapping[str, str]
    keys: Mapping[str, Key]
    activation: str = "hidden_act"
    counted: bool = False
    kind: Literal["encoder"] = "encoder"
    settings: frozenset[str] = field(default_factory=frozenset)

    @property
    def prefix(self) -> str:
        """Of the encoder's tensors in classes with a head."""
        return f"{self.base}."

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""
        _, _, problems = read_config(self.model_type, config, {**COMMON, **self.keys}, IGNORED | KNOWN | TRAINING)
        return problems + architecture_problems(config, [*self.heads, *self.bare])

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class of `architectures`, or the one that gives hidden states."""
        named = named_class(config)
        return named if named is not None and named in self.heads else next(name for name, head in self.heads.items() if head is None)

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of tensors that may be there or not."""
        head = self.heads[self.class_name(config)]
        if head is not None:
            return (*OPTIONAL_TENSORS, *head.unread)
        return (*OPTIONAL_TENSORS, POOLER, rf"^(?!{self.base}\.|embeddings\.|encoder\.|transformer\.).*")

    def task(self, config: Mapping[str, Any]) -> str | None:
        """What the class is for."""
        head = self.heads[self.class_name(config)]
        return "embedding" if head is None else head.task

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the one table."""
        return {"source": config.vocab_size, "target": config.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> HuggingFaceEncoder:
        """The loaded model with the folder's settings of texts."""
        return HuggingFaceEncoder(self, model, texts)


def text_encoding(task: str | None, config: Any, texts: TextSettings) -> EncodingConfig:
    """How the runtime handles texts of a model for `task`, None for hidden states.

    CheckpointError: labels that lack a number, or that cannot be told apart, or an activation that no bundle has.
    """
    found = texts.encoding(task)
    if found.mask_id is not None and found.mask_id >= config.vocab_size:  # the tokenizer's class has it, the model does not
        found = replace(found, mask_id=None)
    if task not in LABELLED:
        return found
    labels = [str(config.id2label.get(i, "")) for i in range(config.num_labels)]
    if not all(labels) or len(set(labels)) < len(labels):
        raise CheckpointError(f"id2label is {config.id2label!r:.80}, expected another name for each number from 0 to {len(labels) - 1}")
    if task == "token-classification":
        return replace(found, labels=tuple(labels))
    return classifying(found, labels, config.to_dict(), len(labels))


@dataclass(eq=False)
class HuggingFaceEncoder:
    """A loaded encoder. texts: what the folder says of them."""

    family: EncoderFamily
    model: Any
    texts: TextSettings

    @property
    def head(self) -> HeadNames | None:
        """Its head's names."""
        return self.family.heads[type(self.model).__name__]

    @property
    def max_length(self) -> int:
        """Tokens of a text."""
        config = self.model.config
        rows = int(config.max_position_embeddings) - (int(config.pad_token_id) + 1 if self.family.counted else 0)
        return min(rows, self.texts.max_length or rows)

    def describe(self) -> EncoderModel:
        """The model for the exporter."""
        config, head = self.model.config, self.head
        named = self.outputs()
        choosing = head is not None and head.task == CHOICE
        original = TransformersEncoder(OneChoice(self.model) if choosing else self.model, list(named))
        tasks = ("embedding", "tensor") if head is None else tuple(dict.fromkeys((head.task, "tensor")))
        return EncoderModel(
            modules=[self.model],
            answer=original.answer,
            build=self.build,
            outputs=named,
            rows=int(config.vocab_size),
            pad_id=int(config.pad_token_id or 0),
            max_length=self.max_length,
            tasks=tasks,
            types=self._types(),
            encoding=text_encoding(None if head is None else head.task, config, self.texts),
            layers=self.texts.arrays if head is None else (),
        )

    def outputs(self) -> dict[str, tuple[int | str, ...]]:
        """Names and shapes of what it answers."""
        head, config = self.head, self.model.config
        if head is None:
            return {"last_hidden_state": ("batch", "sequence", int(config.hidden_size))}
        if head.split:
            return {"start_logits": ("batch", "sequence"), "end_logits": ("batch", "sequence")}
        labels = {FILL: int(config.vocab_size), CHOICE: 1}.get(head.task, int(config.num_labels))
        return {"logits": ("batch", labels) if head.pooling else ("batch", "sequence", labels)}

    def for_task(self, task: str | None) -> HuggingFaceEncoder:
        """The same without its head, where only hidden states can do the task."""
        if task != "embedding" or self.head is None or self.head.task != FILL:
            return self
        return replace(self, model=getattr(self.model, self.family.base))

    def build(self) -> CanonicalModel:
        """The canonical encoder, over the same tensors where their layout allows it."""
        head, parts = self.head, None
        if head is not None:
            modules = {name: self.model.get_submodule(name) for name in (head.out, head.dense, head.norm) if name is not None}
            dense, norm = ((name, modules[name]) if name is not None else None for name in (head.dense, head.norm))
            activation = head.activation or ACTIVATIONS[getattr(self.model.config, self.family.activation)]
            parts = HeadParts((head.out, modules[head.out]), dense, activation, head.split, norm, head.task == FILL)
        return CanonicalModel({"encoder": load_weights.text_encoder(self._stack_weights(), parts, head.pooling if head else None)})

    def _types(self) -> int:
        place = self.family.paths.get("types")
        return 0 if place is None else int(self._base().get_submodule(place).num_embeddings)

    def _base(self) -> Any:
        return self.model if self.head is None else getattr(self.model, self.family.base)

    def _stack_weights(self) -> StackWeights:
        config, family, base = self.model.config, self.family, self._base()
        path, paths = "" if self.head is None else family.base, family.paths
        state = dict(base.named_parameters(remove_duplicate=False))
        heads, rows = int(config.num_attention_heads), family.table.layer
        norms = dict.fromkeys(row.sources[0].rpartition(".")[0] for row in rows if row.ours.endswith("_norm.weight"))
        layers = []
        for i, layer in enumerate(base.get_submodule(paths["layers"])):
            names = {name.removeprefix(f"{paths['layers']}.{i}.") for name in state}
            (up,) = (row.sources[0] for row in rows if row.ours == "feed_forward.up.weight")
            layers.append(
                Layer(
                    heads=heads,
                    inner=state[f"{paths['layers']}.{i}.{up}"].shape[0],
                    activation=ACTIVATIONS[getattr(config, family.activation)],
                    norm_first=False,
                    eps=tuple(layer.get_submodule(norm).eps for norm in norms),
                    biases=existing(rows, names),
                    head=config.hidden_size // heads,
                )
            )
        table, types = self._positions(base)
        norm = base.get_submodule(paths["norm"])
        assert isinstance(norm, nn.LayerNorm)
        kinds, padding = 0 if types is None else len(types[1]), int(config.pad_token_id) if family.counted else None
        stack = Stack(config.hidden_size, tuple(layers), False, None, embedding_eps=norm.eps, types=kinds, padding=padding)
        tokens = parameter(base.get_submodule(paths["tokens"]), "weight")
        below = f"{path}." if path else ""
        positions = (f"{below}{paths['positions']}", table)
        norms_around = {"embedding.norm": paths["norm"]}
        named = (f"{below}{paths['tokens']}", tokens)
        return StackWeights(stack, family.table, path, state, named, positions, 1.0, norms_around, paths["layers"], types)

    def _positions(self, base: Any) -> tuple[Any, tuple[str, Any] | None]:
        """The table of positions, and that of token types; a single type is added to all positions."""
        table, place = parameter(base.get_submodule(self.family.paths["positions"]), "weight"), self.family.paths.get("types")
        if place is None:
            return table, None
        types = parameter(base.get_submodule(place), "weight")
        path = place if self.head is None else f"{self.family.base}.{place}"
        return table, (path, types)
