"""Llama: RMS norms before the blocks, rotary positions, grouped heads, a gated feed-forward."""

from typing import Any

from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, queries_keys_values, transposed
from onnxport.export.hugging_face.causal import LLAMA, CausalFamily
from onnxport.export.hugging_face.config_keys import ACTIVATIONS

LAYER = [
    *linear(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.qkv",
        "self_attn.qkv_proj",
        queries_keys_values,
        queries_keys_values,
    ),
    *linear("self_attn.o_proj", "attention.out", weight=merged),
    *norm("input_layernorm", "attention_norm"),
    *linear(("mlp.gate_proj", "mlp.up_proj"), "feed_forward.up", "mlp.gate_up_proj", transposed),
    *linear("mlp.down_proj", "feed_forward.down"),
    *norm("post_attention_layernorm", "feed_forward_norm"),
]
TABLE = WeightTable(layer=LAYER, modules={"attention": "self_attn", "feed_forward": "mlp.act_fn"})
PATHS = {"tokens": "embed_tokens", "norm": "norm", "layers": "layers"}


def gated(config: Any, index: int) -> dict[str, Any]:
    """What all layers of Llama and its kin have."""
    return {
        "inner": config.intermediate_size,
        "activation": ACTIVATIONS[config.hidden_act],
        "eps": (config.rms_norm_eps,) * 2,
        "norm": "rms",
        "gated": True,
    }


FAMILIES = (
    CausalFamily(
        model_type="llama",
        classes=("LlamaForCausalLM", "LlamaModel"),
        base="model",
        table=TABLE,
        paths=PATHS,
        keys=LLAMA,
        layer=gated,
        settings=frozenset(LLAMA),
    ),
)
