"""Mistral: Llama with a window of attention that slides over all layers."""

from typing import Any

from onnxport.export.families.checks import LENGTH, Key, integer, optional
from onnxport.export.families.hugging_face_causal import LLAMA, CausalFamily
from onnxport.export.families.llama import PLACES, TABLE, gated

KEYS = {**LLAMA, "sliding_window": Key(optional(integer(1, LENGTH)), None)}


def _layer(config: Any, index: int) -> dict[str, Any]:
    return {**gated(config, index), "window": config.sliding_window}


FAMILY = CausalFamily(
    model_type="mistral",
    classes=("MistralForCausalLM", "MistralModel"),
    base="model",
    table=TABLE,
    places=PLACES,
    keys=KEYS,
    layer=_layer,
    settings=frozenset(KEYS),
)
