"""Folders whose config.json names code of their own (`auto_map`): run only where the user allows it, and then traced as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import named_class
from onnxport.export.hugging_face.any_decoder import OtherDecoder
from onnxport.export.hugging_face.any_encoder import UNSUPPORTED, OtherEncoder
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.encoder import CHOICE, FILL, OPTIONAL_TENSORS, POOLER
from onnxport.export.hugging_face.published import KEY, as_its_own, taken_over
from onnxport.export.transformers_library import import_transformers, quiet, refusing

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


class OwnCode(NamedTuple):
    """Whether a folder's own code is run, its config.json for the class that is taken, and what to say of it."""

    runs: bool
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def own_code(config: dict[str, Any], where: Path, allowed: bool) -> OwnCode:
    """What becomes of code that a config.json names. CheckpointError: it is needed, and running it is not allowed."""
    if not config.get(KEY):
        return OwnCode(False, config)
    if allowed:
        return OwnCode(True, config)
    if taken_over(config):
        return OwnCode(False, *as_its_own(config, where))
    references = config[KEY] if isinstance(config[KEY], dict) else {}
    named = ", ".join(sorted(map(str, references))) or repr(config[KEY])
    elsewhere = sorted({str(value).rpartition("--")[0] for value in references.values()} - {""})
    fetch = f" (fetch it first: {_fetched(elsewhere[0], where.parent)})" if elsewhere else ""
    raise CheckpointError(f"{where} names the folder's own code ({KEY}: {named:.80}), which is not run; {RISK}{fetch}")


def own_family(folder: Path, config: Mapping[str, Any]) -> RemoteDecoder | RemoteEncoder:
    """The family of the folder's own class, whose code is run. CheckpointError: there is none that can be exported, or it fails."""
    where, references = folder / "config.json", config[KEY]
    known = {CAUSAL, *TASKS}
    if not isinstance(references, dict) or not all(isinstance(value, str) for key, value in references.items() if key in known):
        raise CheckpointError(f"{where}: {KEY} is {references!r:.60}, expected names of loaders with module.Class")
    loader, reference = _chosen({key: value for key, value in references.items() if key in known}, config, where)
    reference = _beside(reference, folder)
    import_transformers()
    with quiet(), refusing(folder):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        cls = get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
    name, model_type = cls.__name__, str(config["model_type"])
    prefix = getattr(cls, "base_model_prefix", "") or "model"
    if loader == CAUSAL:
        return RemoteDecoder(model_type, name, (name,), prefix, own_class=cls)
    return RemoteEncoder(model_type, name, {name: TASKS[loader]}, prefix, own_class=cls)


def _beside(reference: str, folder: Path) -> str:
    """module.Class of a reference to code elsewhere, where that was copied into the folder. CheckpointError: it was not."""
    elsewhere, _, inside = reference.rpartition("--")
    if elsewhere and not (folder / f"{inside.partition('.')[0]}.py").is_file():
        where = f"{folder / 'config.json'}: {KEY} has {reference!r:.80}"
        raise CheckpointError(f"{where}, code from elsewhere; nothing is fetched: run {_fetched(elsewhere, folder)}")
    return inside


def _fetched(name: str, folder: Path) -> str:
    return f"`hf download {name} --include '*.py' --local-dir {folder}`"


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
