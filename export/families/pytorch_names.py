"""PyTorch's own Transformer: the table of its names."""

from torch import Tensor

from onnxport.export.families.table import Row, Table, Transform, merged, pad_rows, plain, transposed
from onnxport.export.model.settings import Layer


def _projection(start: int, stop: int) -> Transform:
    """Parts start..stop of PyTorch's packed (query, key, value), padded, and transposed where it is a matrix."""

    def take(weight: Tensor, layer: Layer) -> Tensor:
        rows = weight.shape[0] // 3
        return pad_rows(weight[start * rows : stop * rows], (stop - start) * layer.heads, layer.size).t()

    return take


def _rows(*rows: tuple[str, str, Transform]) -> list[Row]:
    return [Row((source,), ours, transform, source + PARTS.get(transform, "")) for source, ours, transform in rows]


qkv, query, key_value = _projection(0, 3), _projection(0, 1), _projection(1, 3)
PARTS = {query: ".query", key_value: ".key_value"}  # what a traced initializer is called when it is only a part of its parameter

SELF_ATTENTION = _rows(
    ("self_attn.in_proj_weight", "attention.qkv.weight", qkv),
    ("self_attn.in_proj_bias", "attention.qkv.bias", qkv),
    ("self_attn.out_proj.weight", "attention.out.weight", merged),
    ("self_attn.out_proj.bias", "attention.out.bias", plain),
    ("norm1.weight", "attention_norm.weight", plain),
    ("norm1.bias", "attention_norm.bias", plain),
)
FEED_FORWARD = _rows(
    ("linear1.weight", "feed_forward.up.weight", transposed),
    ("linear1.bias", "feed_forward.up.bias", plain),
    ("linear2.weight", "feed_forward.down.weight", transposed),
    ("linear2.bias", "feed_forward.down.bias", plain),
)
ENCODER_LAYER = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    *_rows(
        ("norm2.weight", "feed_forward_norm.weight", plain),
        ("norm2.bias", "feed_forward_norm.bias", plain),
    ),
]
DECODER_LAYER = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    *_rows(
        ("multihead_attn.in_proj_weight", "cross.query.weight", query),
        ("multihead_attn.in_proj_bias", "cross.query.bias", query),
        ("multihead_attn.out_proj.weight", "cross.out.weight", merged),
        ("multihead_attn.out_proj.bias", "cross.out.bias", plain),
        ("norm2.weight", "cross_norm.weight", plain),
        ("norm2.bias", "cross_norm.bias", plain),
        ("norm3.weight", "feed_forward_norm.weight", plain),
        ("norm3.bias", "feed_forward_norm.bias", plain),
    ),
]
CROSS_PROJECTION = _rows(
    ("multihead_attn.in_proj_weight", "kv.weight", key_value),
    ("multihead_attn.in_proj_bias", "kv.bias", key_value),
)
LAYER_MODULES = {
    "attention.qkv": "self_attn.in_proj",
    "attention": "self_attn",
    "cross.query": "multihead_attn.in_proj.query",
    "cross": "multihead_attn",
    "feed_forward": "activation",
    "kv": "multihead_attn.in_proj.key_value",
}
TABLE = Table(ENCODER_LAYER, DECODER_LAYER, CROSS_PROJECTION, LAYER_MODULES)
