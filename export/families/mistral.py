"""Mistral: Llama with a window of attention that slides over all layers."""

from typing import Any

from onnxport.export.config_checks import LENGTH, Key, integer, optional
from onnxport.export.families.llama import PATHS, TABLE, gated
from onnxport.export.hugging_face.causal import LLAMA, CausalFamily

KEYS = {**LLAMA, "sliding_window": Key(optional(integer(1, LENGTH)), None)}


def _layer(config: Any, index: int) -> dict[str, Any]:
    return {**gated(config, index), "window": config.sliding_window}


FAMILIES = (
    CausalFamily(
        model_type="mistral",
        classes=("MistralForCausalLM", "MistralModel"),
        base="model",
        table=TABLE,
        paths=PATHS,
        keys=KEYS,
        layer=_layer,
        settings=frozenset(KEYS),
    ),
)
