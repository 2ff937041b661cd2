"""BART: layers normed after their residuals, learned positions, a norm of the embeddings."""

from collections.abc import Mapping
from typing import Any

from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, packed
from onnxport.export.hugging_face.config_keys import always
from onnxport.export.hugging_face.seq2seq import Seq2SeqFamily

SHARED = [
    *linear(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.qkv", "self_attn.qkv_proj", packed(3), packed(3)),
    *linear("self_attn.out_proj", "attention.out", weight=merged),
    *norm("self_attn_layer_norm", "attention_norm"),
    *linear("fc1", "feed_forward.up"),
    *linear("fc2", "feed_forward.down"),
    *norm("final_layer_norm", "feed_forward_norm"),
]
CROSS = [
    *linear("encoder_attn.q_proj", "cross.query", weight=packed(1), bias=packed(1)),
    *linear("encoder_attn.out_proj", "cross.out", weight=merged),
    *norm("encoder_attn_layer_norm", "cross_norm"),
]
TABLE = WeightTable(
    layer=SHARED,
    cross_layer=[*SHARED, *CROSS],
    cross_projection=linear(("encoder_attn.k_proj", "encoder_attn.v_proj"), "kv", "encoder_attn.kv_proj", packed(2), packed(2)),
    modules={"attention": "self_attn", "cross": "encoder_attn", "feed_forward": "activation_fn"},
)


def task(config: Mapping[str, Any]) -> str:
    """summarization where the config has settings for it."""
    tasks = config.get("task_specific_params")
    named = isinstance(tasks, dict) and any(str(name).startswith("summarization") for name in tasks)
    return "summarization" if named else "text2text"


FAMILIES = (
    Seq2SeqFamily(
        model_type="bart",
        classes=("BartForConditionalGeneration", "BartModel"),
        table=TABLE,
        task=task,
        keys={"normalize_embedding": always(True, None), "static_position_embeddings": always(False, None)},
        offset=2,
        norms={"embedding.norm": "layernorm_embedding"},
    ),
)
