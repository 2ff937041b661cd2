"""Qwen2: Llama with biases of queries, keys and values, and a sliding window in the layers that the config names."""

from typing import Any

from onnxport.export.config_checks import LENGTH, Key, integer, optional
from onnxport.export.families.llama import PATHS, TABLE, gated
from onnxport.export.hugging_face.causal import LLAMA, CausalFamily
from onnxport.export.hugging_face.config_keys import FLAG, always

LAYER_TYPES = ("full_attention", "sliding_attention")


def _layer_types(value: Any) -> str | None:
    return None if isinstance(value, list) and set(value) <= set(LAYER_TYPES) else f"a list of {' and '.join(LAYER_TYPES)}"


KEYS = {
    **LLAMA,
    "sliding_window": Key(optional(integer(1, LENGTH)), None),
    "use_sliding_window": FLAG,
    "max_window_layers": Key(optional(integer(0, LENGTH)), None),
    "layer_types": Key(optional(_layer_types), None),
    "use_mrope": always(False),
}


def windowed(config: Any, index: int) -> dict[str, Any]:
    """Llama's settings, with a window where the layer has one."""
    slides = config.layer_types[index] == "sliding_attention"
    return {**gated(config, index), "window": config.sliding_window if slides else None}


FAMILIES = (
    CausalFamily(
        model_type="qwen2",
        classes=("Qwen2ForCausalLM", "Qwen2Model"),
        base="model",
        table=TABLE,
        paths=PATHS,
        keys=KEYS,
        layer=windowed,
        settings=frozenset(KEYS),
    ),
)
