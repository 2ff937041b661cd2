"""Folders whose config.json names code of their own (`auto_map`): run only where the user allows it, and then traced as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import named_class
from onnxport.export.hugging_face.any_decoder import OtherDecoder
from onnxport.export.hugging_face.any_encoder import UNSUPPORTED, OtherEncoder
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.encoder import CHOICE, FILL, OPTIONAL_TENSORS, POOLER
from onnxport.export.transformers_library import import_transformers, quiet, refusing

KEY = "auto_map"
RISK = "--allow-remote-code runs it, and it can do whatever you can: read it first"
TASKS: dict[str, str | None] = {  # loaders → what a class of theirs is for; None: hidden states
    "AutoModel": None,
    "AutoModelForSequenceClassification": "classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": FILL,
    "AutoModelForMultipleChoice": CHOICE,
}
CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True)
class RemoteDecoder(OtherDecoder):
    """A language model whose class is the folder's own."""

    own_class: Any = None

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do."""
        return architecture_problems(config, self.classes)


@dataclass(frozen=True)
class RemoteEncoder(OtherEncoder):
    """An encoder of texts whose class is the folder's own."""

    own_class: Any = None

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do."""
        others = {key: what for key, what in UNSUPPORTED.items() if key != KEY and config.get(key)}
        return [f"{key} is {config[key]!r:.60}: {what} cannot be exported" for key, what in others.items()]

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The one class."""
        return self.base

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of tensors that may be there or not."""
        return OPTIONAL_TENSORS if self.classes[self.base] in ("classification", CHOICE) else (*OPTIONAL_TENSORS, POOLER)


def check_own_code(config: Mapping[str, Any], where: Path, allowed: bool) -> bool:
    """Whether a config.json names code of the folder. CheckpointError: it does, and running it is not allowed."""
    if not config.get(KEY):
        return False
    if not allowed:
        named = ", ".join(sorted(map(str, config[KEY]))) if isinstance(config[KEY], dict) else repr(config[KEY])
        raise CheckpointError(f"{where} names the folder's own code ({KEY}: {named:.80}), which is not run; {RISK}")
    return True


def own_family(folder: Path, config: Mapping[str, Any]) -> RemoteDecoder | RemoteEncoder:
    """The family of the folder's own class, whose code is run. CheckpointError: there is none that can be exported, or it fails."""
    where, references = folder / "config.json", config[KEY]
    known = {CAUSAL, *TASKS}
    if not isinstance(references, dict) or not all(isinstance(value, str) for key, value in references.items() if key in known):
        raise CheckpointError(f"{where}: {KEY} is {references!r:.60}, expected names of loaders with module.Class")
    loader, reference = _chosen({key: value for key, value in references.items() if key in known}, config, where)
    if "--" in reference:
        raise CheckpointError(f"{where}: {KEY} has {reference!r:.60}, code from elsewhere; nothing is fetched: copy it beside config.json")
    import_transformers()
    with quiet(), refusing(folder):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        cls = get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
    name, model_type = cls.__name__, str(config["model_type"])
    prefix = getattr(cls, "base_model_prefix", "") or "model"
    if loader == CAUSAL:
        return RemoteDecoder(model_type, name, (name,), prefix, own_class=cls)
    return RemoteEncoder(model_type, name, {name: TASKS[loader]}, prefix, own_class=cls)


def _chosen(references: Mapping[str, str], config: Mapping[str, Any], where: Path) -> tuple[str, str]:
    """The loader and the reference of the class that `architectures` names, else that of a language model, else of hidden states."""
    named = named_class(config)
    for key, value in references.items():
        if value.rpartition(".")[2] == named:
            return key, value
    for key in (CAUSAL, "AutoModel"):
        if key in references:
            return key, references[key]
    raise CheckpointError(f"{where}: {KEY} names no class that can be exported; expected one of {', '.join([CAUSAL, *TASKS])}")
