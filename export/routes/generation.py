"""The generation settings of a bundle, as every route writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxport.export.attention_interface.attention import LayerShape
from onnxport.export.description import CausalModel, Seq2SeqModel
from onnxport.runtime.bundle.manifest import GenerationConfig, LayerCache
from onnxport.runtime.bundle.manifest import generation as read


def generation_config(model: Seq2SeqModel | CausalModel, **sizes: Any) -> GenerationConfig:
    """Of a model whose decoder has these sizes, by their names in the section `generation` of bundle.json."""
    kind = "seq2seq" if isinstance(model, Seq2SeqModel) else "causal"
    config = read({"kind": kind, "max_length": model.max_length, **model.ids, **model.search, **sizes})
    assert config is not None, "there is a section"
    return config


def cache_sizes(shapes: Sequence[LayerShape]) -> dict[str, Any]:
    """Sizes of the caches of layers, one by one where they differ."""
    caches = [LayerCache(shape.kv_heads, shape.head_size, shape.window) for shape in shapes]
    alike = len(set(caches)) == 1
    first = caches[0]
    found: dict[str, Any] = {"layers": len(caches), "kv_heads": first.kv_heads, "head_size": first.head_size}
    if alike:
        return found | {"window": first.window}
    return found | {"window": None, "caches": [[cache.kv_heads, cache.head_size, cache.window] for cache in caches]}
