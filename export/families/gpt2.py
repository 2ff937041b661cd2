"""GPT-2: layers normed before, learned positions, weights stored as [inputs, outputs]."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onnxport.export.canonical.settings import Layer
from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, plain, queries_keys_values
from onnxport.export.config_checks import DEPTH, LENGTH, WIDTH, Key, integer, number, one_of, optional
from onnxport.export.hugging_face.causal import CausalFamily
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, FLAG, always

KEYS: Mapping[str, Key] = {
    "n_embd": Key(integer(1, WIDTH), None),
    "n_layer": Key(integer(1, DEPTH), None),
    "n_head": Key(integer(1, WIDTH), None),
    "n_inner": Key(optional(integer(1, 16 * WIDTH)), None),
    "n_positions": Key(integer(1, LENGTH), None),
    "activation_function": Key(one_of(*ACTIVATIONS), None),
    "layer_norm_epsilon": Key(number(0), None),
    "scale_attn_weights": always(True),
    "scale_attn_by_inverse_layer_idx": always(False),
    "reorder_and_upcast_attn": FLAG,  # of the way to the same numbers
}


def _packed(weight: Tensor, layer: Layer) -> Tensor:
    return queries_keys_values(weight.t(), layer)


def _merged(weight: Tensor, layer: Layer) -> Tensor:
    return merged(weight.t(), layer)


def _layer(config: Any, index: int) -> dict[str, Any]:
    return {
        "inner": config.n_inner or 4 * config.n_embd,
        "activation": ACTIVATIONS[config.activation_function],
        "eps": (config.layer_norm_epsilon,) * 2,
    }


FAMILIES = (
    CausalFamily(
        model_type="gpt2",
        classes=("GPT2LMHeadModel", "GPT2Model"),
        base="transformer",
        table=WeightTable(
            layer=[
                *linear("attn.c_attn", "attention.qkv", weight=_packed, bias=queries_keys_values),
                *linear("attn.c_proj", "attention.out", weight=_merged),
                *norm("ln_1", "attention_norm"),
                *linear("mlp.c_fc", "feed_forward.up", weight=plain),
                *linear("mlp.c_proj", "feed_forward.down", weight=plain),
                *norm("ln_2", "feed_forward_norm"),
            ],
            modules={"attention": "attn", "feed_forward": "mlp.act"},
        ),
        paths={"tokens": "wte", "positions": "wpe", "norm": "ln_f", "layers": "h"},
        keys=KEYS,
        layer=_layer,
        settings=frozenset(KEYS),
    ),
)
