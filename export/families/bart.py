"""BART: layers normed after their residuals, learned positions, a norm of the embeddings."""

from collections.abc import Mapping
from typing import Any

from onnxport.export.families.hugging_face_config import always
from onnxport.export.families.hugging_face_seq2seq import Seq2SeqFamily
from onnxport.export.families.table import Row, Table, Transform, merged, packed, plain, transposed


def _linear(source: str, ours: str, transform: Transform = transposed, bias: Transform = plain) -> list[Row]:
    """Weight and bias of `source`; several, written a+b, lie behind one another in one projection, which is called after the last."""
    *path, last = source.split(".")
    names = [".".join([*path, f"{part}_proj" if "+" in last else part]) for part in last.split("+")]
    name = ".".join([*path, f"{last.replace('+', '')}_proj" if "+" in last else last])
    rows = (("weight", transform), ("bias", bias))
    return [Row(tuple(f"{n}.{kind}" for n in names), f"{ours}.{kind}", how, f"{name}.{kind}") for kind, how in rows]


SHARED = [
    *_linear("self_attn.q+k+v", "attention.qkv", packed(3), packed(3)),
    *_linear("self_attn.out_proj", "attention.out", merged),
    *_linear("self_attn_layer_norm", "attention_norm", plain),
    *_linear("fc1", "feed_forward.up"),
    *_linear("fc2", "feed_forward.down"),
    *_linear("final_layer_norm", "feed_forward_norm", plain),
]
CROSS = [
    *_linear("encoder_attn.q_proj", "cross.query", packed(1), packed(1)),
    *_linear("encoder_attn.out_proj", "cross.out", merged),
    *_linear("encoder_attn_layer_norm", "cross_norm", plain),
]
TABLE = Table(
    encoder=SHARED,
    decoder=[*SHARED, *CROSS],
    cross=_linear("encoder_attn.k+v", "kv", packed(2), packed(2)),
    modules={"attention": "self_attn", "cross": "encoder_attn", "feed_forward": "activation_fn"},
)


def task(config: Mapping[str, Any]) -> str:
    """summarization where the config has settings for it."""
    tasks = config.get("task_specific_params")
    named = isinstance(tasks, dict) and any(str(name).startswith("summarization") for name in tasks)
    return "summarization" if named else "text2text"


FAMILY = Seq2SeqFamily(
    model_type="bart",
    classes=("BartForConditionalGeneration", "BartModel"),
    table=TABLE,
    task=task,
    keys={"normalize_embedding": always(True, None), "static_position_embeddings": always(False, None)},
    offset=2,
    norms={"embedding.norm": "layernorm_embedding"},
)
