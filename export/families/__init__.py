"""The families with a table of weight names each, for the canonical route."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxport.export.hugging_face.family import Family

# model_type of a config.json → the module of this package whose FAMILIES hold it
MODULES = {
    "bart": "bart",
    "bert": "bert",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "gpt2": "gpt2",
    "llama": "llama",
    "marian": "marian",
    "mistral": "mistral",
    "mt5": "t5",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "roberta": "roberta",
    "t5": "t5",
    "xlm-roberta": "roberta",
    "xlnet": "xlnet",
}


def family(model_type: str) -> Family:
    """The family of a model type that is a key of MODULES."""
    module = importlib.import_module(f"onnxport.export.families.{MODULES[model_type]}")
    families: tuple[Family, ...] = module.FAMILIES
    return next(one for one in families if one.model_type == model_type)
