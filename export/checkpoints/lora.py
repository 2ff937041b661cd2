"""Adapters of PEFT are merged into the weights of their base: W + scale * B A, as peft/tuners/lora/layer.py has it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onnxport.errors import CheckpointError
from onnxport.export.checkpoints.plain import ADAPTER
from onnxport.export.config_checks import read_json
from onnxport.export.source import Source
from onnxport.export.weights import WeightFiles, file_hash, read_adapter_weights

CONFIG = "adapter_config.json"
KEYS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}  # ends of names
PREFIX = "base_model.model."
INNER = (".base_layer", ".modules_to_save")  # of wrappers around a module
INPUTS_FIRST = ("gpt2", "openai-gpt", "imagegpt")  # model types whose products are Conv1D, weights [inputs, outputs]
READ = frozenset("r lora_alpha use_rslora alpha_pattern fan_in_fan_out peft_type base_model_name_or_path bias modules_to_save".split())
HARMLESS = frozenset(  # of training, or already in the tensors' names and shapes
    """rank_pattern target_modules exclude_modules lora_dropout layers_to_transform layers_pattern task_type auto_mapping peft_version
    revision inference_mode runtime_config loftq_config eva_config init_lora_weights megatron_core qalora_group_size
    ensure_weight_tying""".split()
)
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base's own weights
PLAIN_NAME = re.compile(r"\^?[\w.\\-]+\$?")
HEADS = ("lm_head.weight", "score.weight")  # linear layers in those too
TIED = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


@dataclass(frozen=True)
class Merged:
    """What a base and an adapter make: a config, tensors one after the other, and what a bundle says of it. files: the adapter's."""

    config: dict[str, Any]
    tensors: Iterator[tuple[str, Tensor]]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    files: tuple[Path, ...]

    def hashed(self, source: Source) -> Source:
        """The source with the hashes of the adapter's files."""
        return replace(source, hashes=source.hashes | {f"{ADAPTER}{path.name}": file_hash(path) for path in self.files})


@dataclass
class Change:
    """What an adapter does to one tensor: a product of two matrices is added to it, or it is replaced."""

    a: Tensor | None = None
    b: Tensor | None = None
    table: bool = False
    value: Tensor | None = field(default=None)


def merge(base: WeightFiles, config: Mapping[str, Any], folder: Path, allow_pickle: bool) -> Merged:
    """The base with an adapter merged. CheckpointError: the adapter is of another kind, or not of this base."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; give the folder of a LoRA adapter, as PEFT saves it")
    settings = read_json(path)
    if problems := _problems(settings):
        raise CheckpointError(f"{path}: {'; '.join(problems)}; merge it with PEFT (merge_and_unload), save the model and export that")
    files = read_adapter_weights(folder, allow_pickle)
    changes = _changes(files, base, folder)
    config, untied = _untied(dict(config), base, changes)
    named = settings.get("base_model_name_or_path")
    of = f"{named!r:.80}" if isinstance(named, str) and named else "a base that it does not name"
    notes = [f"an adapter of {of} is merged: {len(changes)} of {len(base.tensors)} tensors change"]
    if untied:
        notes.append("the adapter changes one of two tied tables: they are two tables now")
    if (folder / "tokenizer.json").is_file():
        notes.append("the tokenizer is that of the base; the adapter's own is left out")
    scales = {name: _scale(settings, name, change) for name, change in changes.items()}
    inputs_first = config.get("model_type") in INPUTS_FIRST  # PEFT corrects fan_in_fan_out by the layer's class too
    tensors = _merged(base, changes, scales, inputs_first, untied)
    return Merged(config, tensors, tuple(notes), {"base": named, "rank": settings.get("r")}, (path, *files.paths))


def _problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything in an adapter_config.json that a merge would not reproduce."""
    if settings.get("peft_type") != "LORA":
        return [f"peft_type is {settings.get('peft_type')!r:.40}, expected LORA"]
    problems = [f"{name} is {settings[name]!r:.60}" for name in sorted(settings.keys() - READ - HARMLESS) if settings[name]]
    begin = settings.get("init_lora_weights")
    if isinstance(begin, str) and begin.lower().startswith(CHANGES_BASE):
        problems.append(f"init_lora_weights is {begin!r:.40}, which changes the base too")
    if type(settings.get("lora_alpha", 8)) not in (int, float):
        problems.append(f"lora_alpha is {settings['lora_alpha']!r:.40}, expected a number")
    pattern = settings.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or not all(PLAIN_NAME.fullmatch(k) and type(v) in (int, float) for k, v in pattern.items()):
        problems.append(f"alpha_pattern is {pattern!r:.60}, expected plain names with numbers")
    return problems


def _changes(files: WeightFiles, base: WeightFiles, folder: Path) -> dict[str, Change]:
    """What is done to which of the base's tensors. CheckpointError lists what is not there, or does not fit."""
    changes: dict[str, Change] = {}
    problems = []
    for name, tensor in files.tensors.items():
        end = next((key for key in KEYS if name.endswith(f".{key}")), None)
        plain = (name.removeprefix(PREFIX).removesuffix(f".{end}") + ".weight") if end else name.removeprefix(PREFIX)
        for inner in INNER:
            plain = plain.replace(f"{inner}.", ".")
        target = _named(plain, base)
        if target is None or (end is None and "lora_" in name):
            problems.append(f"{name} has no place in the base")
            continue
        change = changes.setdefault(target, Change())
        if end is None:
            change.value = tensor
        else:
            setattr(change, KEYS[end].lower(), tensor)
            change.table = "embedding" in end
    problems += [f"{name} lacks a matrix, or has two of different ranks" for name, change in changes.items() if _misfit(change)]
    if problems or not changes:
        raise CheckpointError(
            f"{folder} is no adapter of this base: {'; '.join(problems[:5]) or 'it has no tensors'}; give its own base folder"
        )
    return changes


def _misfit(change: Change) -> bool:
    a, b = change.a, change.b
    if a is None or b is None:
        return a is not b
    return bool(a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1])


def _named(name: str, base: WeightFiles) -> str | None:
    """A tensor's name in the base's files, which may have been saved without a head; a head that is tied is in none."""
    if name in base.tensors:
        return name
    short = name.partition(".")[2]
    if short in base.tensors:
        return short
    return name if name == "lm_head.weight" and _tables(base) else None


def _tables(base: WeightFiles) -> list[str]:
    """Names of the table of tokens and of the head."""
    return [name for name in base.tensors if name.endswith(TIED)]


def _untied(config: dict[str, Any], base: WeightFiles, changes: Mapping[str, Change]) -> tuple[dict[str, Any], str | None]:
    """A config whose tables are two where an adapter changes one of a tied pair, and the table that the other one is read from."""
    touched = [name for name in {*_tables(base), *changes} if name.endswith(TIED) and name in changes]
    if not touched or not config.get("tie_word_embeddings", "lm_head.weight" not in base.tensors):
        return config, None
    table = next((name for name in base.tensors if name.endswith(TIED[:2])), None)
    return config | {"tie_word_embeddings": False}, table


def _scale(settings: Mapping[str, Any], target: str, change: Change) -> float:
    """lora_alpha / r, or with rslora over its square root; `alpha_pattern` has other numerators for some modules."""
    if change.a is None:
        return 1.0
    module = target.removesuffix(".weight")
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), settings.get("lora_alpha", 8))
    rank = int(change.a.shape[0])
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _merged(
    base: WeightFiles, changes: Mapping[str, Change], scales: Mapping[str, float], inputs_first: bool, untied: str | None
) -> Iterator[tuple[str, Tensor]]:
    """The base's tensors in turn, in float32 where they change. CheckpointError: shapes do not fit."""
    names = dict.fromkeys([*base.tensors, *changes, *(["lm_head.weight"] if untied else [])])
    for name in names:
        tensor = base.tensors[untied if name not in base.tensors and untied else name]
        yield name, _changed(name, tensor, changes[name], scales[name], inputs_first and name not in HEADS) if name in changes else tensor


def _changed(name: str, tensor: Tensor, change: Change, scale: float, inputs_first: bool) -> Tensor:
    """A tensor with its change. CheckpointError: they do not fit."""
    product = _product(change, inputs_first)
    for value in (change.value, product):
        if value is not None and value.shape != tensor.shape:
            what = f"the adapter has {name} with shape {list(value.shape)}, expected {list(tensor.shape)}"
            raise CheckpointError(f"{what}; give its own base folder")
    tensor = tensor if change.value is None else change.value
    return tensor if product is None else tensor.float() + product * scale


def _product(change: Change, inputs_first: bool) -> Tensor | None:
    """B A as the weight lies, float32; None where nothing is added."""
    if change.a is None or change.b is None:
        return None
    product = change.b.float() @ change.a.float()
    return product.t() if change.table or inputs_first else product
