"""`pipeline()` over bundles, with the arguments and the results of transformers' function of that name.

from onnxport.integrations.transformers import pipeline
classify = pipeline("text-classification", model="artifacts/reviews")
classify("a good film")                                                  # [{"label": "POSITIVE", "score": 0.98}]

Neither torch nor transformers is needed. Tasks are those of transformers 5, and the four that only transformers 4 has: translation,
summarization, text2text-generation and question-answering. An argument that would change answers and that a bundle cannot follow is
refused by its name (UsageError). Those that only say how a model is fetched or fed (token, trust_remote_code, use_fast, num_workers) have
no effect.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from onnxport.errors import UsageError
from onnxport.integrations.transformers.base import Pipeline
from onnxport.integrations.transformers.encoding import (
    FeatureExtractionPipeline,
    FillMaskPipeline,
    QuestionAnsweringPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
    ZeroShotClassificationPipeline,
)
from onnxport.integrations.transformers.generating import (
    SummarizationPipeline,
    Text2TextGenerationPipeline,
    TextGenerationPipeline,
    TranslationPipeline,
)
from onnxport.runtime.model import Model, load

PIPELINES: dict[str, type[Pipeline]] = {
    "text-generation": TextGenerationPipeline,
    "translation": TranslationPipeline,
    "summarization": SummarizationPipeline,
    "text2text-generation": Text2TextGenerationPipeline,
    "text-classification": TextClassificationPipeline,
    "token-classification": TokenClassificationPipeline,
    "question-answering": QuestionAnsweringPipeline,
    "fill-mask": FillMaskPipeline,
    "zero-shot-classification": ZeroShotClassificationPipeline,
    "feature-extraction": FeatureExtractionPipeline,
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
PAIR = re.compile("translation_([^_]*)_[^_]*_([^_]*)")
# the pipeline of a bundle's task, where a caller names none
OWN = {"text2text": "text2text-generation", "classification": "text-classification", "embedding": "feature-extraction"}


def pipeline(
    task: str | None = None,
    model: str | Path | Model | None = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    video_processor: Any = None,
    processor: Any = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | None = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    **kwargs: Any,
) -> Pipeline:
    """A bundle as one of transformers' pipelines.

    task: one of PIPELINES or ALIASES, or "translation_XX_to_YY", which names the languages of a model of several; None is what the bundle
    is for. model: the bundle's folder, or a loaded Model. device: None, -1 and "cpu" are the CPU; 0 and "cuda" the GPU. precision,
    threads: as in `onnxport.load`. kwargs: arguments that each call is to have.
    Errors: those of `onnxport.load`; UsageError for another task, and for an argument that a bundle cannot follow.
    """
    refused = {
        "config": config, "tokenizer": tokenizer, "feature_extractor": feature_extractor, "image_processor": image_processor,
        "video_processor": video_processor, "processor": processor, "revision": revision, "device_map": device_map,
        "model_kwargs": model_kwargs, "pipeline_class": pipeline_class,
    }  # fmt: skip
    for name, value in refused.items():
        if value:
            raise UsageError(f"{name} is given, which a bundle cannot follow: it has all parts of its model; leave {name} out")
    if dtype not in (None, "auto"):
        raise UsageError(f"dtype is {dtype}, a bundle has variants; choose one with precision")
    pair = PAIR.fullmatch(task or "")
    task = "translation" if pair else task
    task = ALIASES.get(task or "", task)
    if task is not None and task not in PIPELINES:
        raise UsageError(f"task is {task!r:.60}, expected one of {', '.join((*PIPELINES, *ALIASES))}")
    if model is None:
        raise UsageError("model is None, expected a bundle's folder; make one with `onnxport export`")
    if isinstance(model, Model):
        if given := [name for name, value in (("device", device), ("precision", precision), ("threads", threads)) if value is not None]:
            raise UsageError(f"{given[0]} is given beside a model that is loaded; give it to onnxport.load")
        loaded = model
    else:
        loaded = load(model, precision=precision, device=_device(device), threads=threads)
    kind = PIPELINES.get(OWN.get(loaded.task, loaded.task) if task is None else task)
    if kind is None or loaded.task not in kind.bundle_tasks:
        fit = [name for name, one in PIPELINES.items() if loaded.task in one.bundle_tasks]
        raise UsageError(f"task is {task!r}, but this bundle's is {loaded.task}; expected {' or '.join(fit) or 'another bundle'}")
    return kind(loaded, _languages(pair, loaded), kwargs)


def _languages(pair: re.Match[str] | None, model: Model) -> dict[str, str]:
    """Those that a task's name tells; {} of a model of one pair, which it only describes, as there."""
    generation = model.bundle.generation
    if pair is None or generation is None or generation.languages is None:
        return {}
    return {"src_lang": pair[1], "tgt_lang": pair[2]}


def _device(given: int | str | None) -> str:
    """The runtime's name of a device, as transformers' users give it: by number, by name, or as an object of torch."""
    name = str(given)
    if name in ("None", "-1", "cpu"):
        return "cpu"
    if name in ("0", "cuda", "cuda:0"):
        return "cuda"
    raise UsageError(f"device is {name!r:.60}, expected None, -1 or 'cpu', or 0 or 'cuda'")


__all__ = ["ALIASES", "PIPELINES", "Pipeline", "pipeline", *(kind.__name__ for kind in PIPELINES.values())]
