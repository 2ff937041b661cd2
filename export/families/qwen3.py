"""Qwen3: Qwen2 without biases, and with an RMS norm of each head's queries and keys."""

from typing import Any

from onnxport.export.canonical.weight_table import Row, WeightTable, head_norm
from onnxport.export.families.llama import LAYER, PATHS, TABLE
from onnxport.export.families.qwen2 import KEYS, windowed
from onnxport.export.hugging_face.causal import CausalFamily

NORMS = [
    Row((f"self_attn.{name}_norm.weight",), f"attention.{ours}_norm.weight", head_norm, f"self_attn.{name}_norm.weight")
    for name, ours in (("q", "query"), ("k", "key"))
]


def _layer(config: Any, index: int) -> dict[str, Any]:
    return {**windowed(config, index), "qk_eps": config.rms_norm_eps}


FAMILIES = (
    CausalFamily(
        model_type="qwen3",
        classes=("Qwen3ForCausalLM", "Qwen3Model"),
        base="model",
        table=WeightTable(layer=[*LAYER, *NORMS], modules=TABLE.modules),
        paths=PATHS,
        keys=KEYS,
        layer=_layer,
        settings=frozenset(KEYS),
    ),
)
