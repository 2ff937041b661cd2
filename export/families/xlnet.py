"""XLNet: layers normed after their residuals, scores that depend on distances and token types, [CLS] at the end, padding on the left.

The stream of contents alone; the other one is for training by permutations. A text's answers depend neither on what it is padded with nor
on which side: padding is never seen, and scores know distances only. Memories of earlier segments are not fed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxport.export.canonical.load_weights import StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import Row, WeightTable, linear, norm
from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, integer, number, one_of, read_json
from onnxport.export.deferred import parameter, values_of
from onnxport.export.description import EncoderModel
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, always
from onnxport.export.hugging_face.encoder import QUESTIONS, TOKENS, EncoderFamily, HeadNames, HuggingFaceEncoder
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import TransformersEncoder
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.tokenizers import special_tokens

LONGEST = 512  # tokens of a text where the folder has no limit: no config of XLNet does, and these are what it was trained with
BEAMS = "XLNetForQuestionAnswering"


def _padded(weight: Tensor, layer: Layer) -> Tensor:
    """[..., heads, head] → [..., heads * size]."""
    return F.pad(weight, [0, layer.size - layer.head]).flatten(-2)


def _packed(weight: Tensor, layer: Layer) -> Tensor:
    """Queries, keys and values behind one another [3 * d, heads, head] → [d, 3 * heads * size]."""
    return torch.cat(_padded(weight, layer).chunk(3), 1)


def _merged(weight: Tensor, layer: Layer) -> Tensor:
    """[d, heads, head] → [heads * size, d]."""
    return _padded(weight, layer).t()


def _scaled(weight: Tensor, layer: Layer) -> Tensor:
    """[d, heads, head] → [d, heads * size], with the scale of scores."""
    return _padded(weight, layer) * layer.score_scale


def _types(weight: Tensor, layer: Layer) -> Tensor:
    """What makes queries [n, heads, head], and behind it the keys of the same and of the other type → the scores' difference [n, heads]."""
    return (weight[:-2] * (weight[-1] - weight[-2])).sum(-1) * layer.score_scale


def _types_bias(weight: Tensor, layer: Layer) -> Tensor:
    """The same of one bias of queries [1, heads, head] → [heads]."""
    return _types(weight, layer)[0]


TABLE = WeightTable(
    layer=[
        Row(("rel_attn.q", "rel_attn.k", "rel_attn.v"), "attention.qkv.weight", _packed, "rel_attn.qkv.weight"),
        Row(("rel_attn.o",), "attention.out.weight", _merged, "rel_attn.o.weight"),
        Row(("rel_attn.r",), "attention.distance.weight", _scaled, "rel_attn.r.weight"),
        Row(("rel_attn.q", "rel_attn.seg_embed"), "attention.kind.weight", _types, "rel_attn.seg_embed.weight"),
        Row(("rel_attn.r_s_bias", "rel_attn.seg_embed"), "attention.kind.bias", _types_bias, "rel_attn.seg_embed.bias"),
        Row(("rel_attn.r_w_bias",), "attention.content_bias", _padded, "rel_attn.r_w_bias"),
        Row(("rel_attn.r_r_bias",), "attention.distance_bias", _padded, "rel_attn.r_r_bias"),
        *norm("rel_attn.layer_norm", "attention_norm"),
        *linear("ff.layer_1", "feed_forward.up"),
        *linear("ff.layer_2", "feed_forward.down"),
        *norm("ff.layer_norm", "feed_forward_norm"),
    ],
    modules={"attention": "rel_attn", "feed_forward": "ff"},
)
ALIASES = {"n_token": "vocab_size", "hidden_size": "d_model", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
SIZED: dict[str, Key] = {
    "d_model": Key(integer(1, WIDTH), None),
    "n_layer": Key(integer(1, DEPTH), None),
    "n_head": Key(integer(1, WIDTH), None),
    "d_inner": Key(integer(1, 16 * WIDTH), None),
    "ff_activation": Key(one_of(*ACTIVATIONS), None),
    "layer_norm_eps": Key(number(0), None),
    "clamp_len": Key(integer(-1, LENGTH), None),
}
ANY = Key(lambda value: None, None)
KEYS: dict[str, Key] = {
    **SIZED,
    **dict.fromkeys(ALIASES, Key(integer(1, ROWS), None)),
    "d_head": Key(integer(1, WIDTH), None),
    "attn_type": always("bi"),
    "bi_data": always(False),
    "untie_r": always(True),  # older configs; the class knows nothing else
    "summary_type": always("last", "cls_index"),  # the same where a call names no place
    "summary_use_proj": always(True),
    "summary_activation": Key(one_of(*ACTIVATIONS), None),
    "summary_proj_to_labels": always(False, None),
    "max_position_embeddings": Key(lambda value: "no such key: the class has no longest text", None),
    # of memories, of one-sided attention, of training, and of the head that is left out
    **dict.fromkeys("mem_len reuse_len use_mems_eval use_mems_train same_length start_n_top end_n_top".split(), ANY),
    **dict.fromkeys("dropatt init init_range init_std summary_last_dropout summary_first_dropout".split(), ANY),
}


@dataclass(frozen=True)
class XLNetFamily(EncoderFamily):
    """EncoderFamily with what is XLNet's own in its config, tensors and adapter."""

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""
        problems = super().problems(config)
        if config.get("architectures") == [BEAMS]:
            problems[-1] = f"architectures is {BEAMS}, whose ends are searched for each of several starts, expected {BEAMS}Simple"
        problems += [
            f"{alias} is {config[alias]!r:.40}, expected {name}'s {config[name]!r:.40}"
            for alias, name in ALIASES.items()
            if alias in config and name in config and config[alias] != config[name]
        ]
        return problems

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of tensors that may be there or not: the start of the stream for training, and heads where only the states count."""
        mask = r"(^|\.)mask_emb$"
        return (mask,) if self.heads[self.class_name(config)] else (mask, r"^(?!transformer\.|word_embedding\.|layer\.)")

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> XLNetEncoder:
        """The loaded model with the folder's settings of texts."""
        path = folder / special_tokens.FILES[0]
        return XLNetEncoder(self, model, texts, read_json(path) if path.is_file() else {})


@dataclass(eq=False)
class XLNetEncoder(HuggingFaceEncoder):
    """A loaded XLNet. reading: tokenizer_config.json."""

    reading: Mapping[str, Any]

    @property
    def head(self) -> HeadNames | None:
        """Its head's names."""
        head = super().head
        if head is None or head.dense is None:
            return head
        return replace(head, activation=ACTIVATIONS[self.model.config.summary_activation])

    @property
    def max_length(self) -> int:
        """Tokens of a text; transformers writes a huge number where none is meant."""
        stated = self.reading.get("model_max_length")
        longest = stated if type(stated) is int and 0 < stated <= LENGTH else LONGEST
        return min(longest, self.texts.max_length or longest)

    def describe(self) -> EncoderModel:
        """The model for the exporter."""
        named = self.outputs()
        original = LeftPadded(self.model, list(named), by_token=any("sequence" in shape for shape in named.values()))
        model = super().describe()
        question_first = self.reading.get("padding_side", "left") == "right"
        encoding = replace(model.encoding, question_first=question_first)
        return replace(model, answer=original.answer, encoding=encoding)

    def _types(self) -> int:
        return 3  # two texts and [CLS]; the class takes any

    def _stack_weights(self) -> StackWeights:
        config, base = self.model.config, self._base()
        path = "" if self.head is None else self.family.base
        state = dict(base.named_parameters(remove_duplicate=False))
        # one more row of what makes queries, so that it can be joined with the keys of token types
        state |= {name: values_of(tensor)[None] for name, tensor in state.items() if name.endswith(".r_s_bias")}
        layer = Layer(
            heads=config.n_head,
            inner=config.d_inner,
            activation=ACTIVATIONS[config.ff_activation],
            norm_first=False,
            eps=(config.layer_norm_eps, config.layer_norm_eps),
            biases=frozenset(("attention_norm.bias", "feed_forward_norm.bias", "feed_forward.up.bias", "feed_forward.down.bias")),
            head=config.d_head,
            relations=True,
        )
        positions = self.max_length
        stack = Stack(config.d_model, (layer,) * config.n_layer, False, None, distances=positions)
        tokens = (f"{path}.word_embedding" if path else "word_embedding", parameter(base.word_embedding, "weight"))
        relative = ("relative_positions", _distances(config, positions))
        return StackWeights(stack, self.family.table, path, state, tokens, None, 1.0, {}, "layer", relative=relative)


def _distances(config: Any, positions: int) -> Tensor:
    """Sines and cosines of distances [2 * positions, d] from `positions` back to `positions - 1` ahead, in the class's own steps."""
    frequencies = 1 / torch.pow(10000, torch.arange(0, config.d_model, 2.0) / config.d_model)
    distances = torch.arange(positions, -positions, -1.0)
    if config.clamp_len > 0:
        distances = distances.clamp(-config.clamp_len, config.clamp_len)
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class LeftPadded(TransformersEncoder):
    """The original behind arrays that are padded on the right: it sees them padded on the left, as its tokenizer does and its head of
    classification needs it."""

    def __init__(self, model: Any, names: list[str], by_token: bool) -> None:
        """by_token: whether outputs are [batch, sequence, ...]."""
        super().__init__(model, names)
        self.by_token = by_token

    def answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """As TransformersEncoder; what is answered at padding is the original's for another distance, and nobody's to read."""
        length = inputs["attention_mask"].shape[1]
        padding = length - inputs["attention_mask"].sum(1, keepdim=True)
        places = torch.arange(length)
        answers = super().answer({name: tensor.gather(1, (places - padding) % length) for name, tensor in inputs.items()})
        if not self.by_token:
            return answers
        rows = torch.arange(len(padding))[:, None]
        return {name: tensor[rows, (places + padding) % length] for name, tensor in answers.items()}


FAMILIES = (
    XLNetFamily(
        model_type="xlnet",
        base="transformer",
        table=TABLE,
        heads={
            "XLNetModel": None,
            "XLNetForSequenceClassification": HeadNames("classification", "logits_proj", "last", "sequence_summary.summary"),
            "XLNetForQuestionAnsweringSimple": QUESTIONS,
            "XLNetForTokenClassification": TOKENS,
        },
        bare=("XLNetLMHeadModel",),
        paths={},
        keys=KEYS,
        settings=frozenset(SIZED),
    ),
)
