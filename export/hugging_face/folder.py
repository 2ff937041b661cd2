"""Folders in Hugging Face's layout: config.json, generation_config.json, weights and tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxport.errors import CheckpointError
from onnxport.export import pooled_layers
from onnxport.export.config_checks import named_class, read_json
from onnxport.export.deferred import defer_all
from onnxport.export.hugging_face import generation_settings
from onnxport.export.hugging_face.encoder import POOLER
from onnxport.export.hugging_face.family import Decoding, Family
from onnxport.export.sentence_transformers import has_modules, read_modules, score_notes
from onnxport.export.source import Source
from onnxport.export.tokenizers.folder import hugging_face
from onnxport.export.transformers_library import import_transformers, quiet, refusing
from onnxport.export.weights import file_hash, held_types, read_hugging_face_weights, weight_problems

Shapes = dict[str, list[int]]


def read(family: Family, folder: Path, config: dict[str, Any], allow_pickle: bool, whole: Path | None = None) -> Source:
    """The folder as a Source. Errors: CheckpointError with all gaps of a stage at once (config, then everything else), UsageError.

    whole: sentence-transformers' folder around it, None where it is itself.
    """
    if problems := family.problems(config):
        raise CheckpointError(f"{folder / 'config.json'}: {'; '.join(problems)}")
    transformers = import_transformers()
    files = read_hugging_face_weights(folder, allow_pickle)
    stated, config = config, _taken(family, config, has_modules(whole or folder), files.tensors)
    used, settings = {folder / "config.json", *files.paths}, None
    with quiet(), refusing(folder):
        cls = getattr(family, "own_class", None) or getattr(transformers, family.class_name(config))
        model_config = cls.config_class.from_dict(dict(config))
        if family.kind != "encoder":
            settings, settings_file = _generation_config(transformers, folder)
            used.add(settings_file)
        optional_tensors = family.optional_tensors(config)
        unread = (POOLER,) if family.kind == "encoder" else ()  # not by classes that have none, as many folders of finer tasks show
        expected, optional, tensors = _shapes(cls, model_config, files.tensors, family.prefix, optional_tensors, unread)
    problems = weight_problems(tensors, expected, optional)
    sizes = family.vocabularies(model_config)
    decoding, setting_problems = (None, []) if settings is None else _decoding(family, settings, sizes)
    tokenizers = hugging_face(folder, family.model_type)
    if decoding is not None and tokenizers.languages is not None and family.kind == "seq2seq":
        decoding = decoding._replace(search=decoding.search | {"languages": tokenizers.languages})
    if problems := [*problems, *setting_problems, *tokenizers.problems(sizes)]:
        raise CheckpointError(f"{folder} does not agree with its config.json: {'; '.join(problems)}")
    paths, types = files.paths, held_types(tensors)
    del files, tensors  # transformers reads them again
    texts = read_modules(whole or folder, tokenizers.gives_types, tokenizers.longest)
    arrays, layer_files = pooled_layers.read(texts, model_config.hidden_size, allow_pickle) if texts.layers else ((), {})
    texts = replace(texts, mask_id=tokenizers.mask_id, unknown_id=tokenizers.unknown_id, arrays=arrays)
    adapter = family.adapter(_load(cls, folder, model_config, paths, types, optional_tensors, unread), folder, decoding, texts)
    hashes = {path.name: file_hash(path) for path in sorted({*used, *tokenizers.files})} | layer_files
    plain = {name: value for name, value in sorted(config.items()) if name in family.settings}
    task = "tensor" if family.kind == "encoder" and not tokenizers.by_side else family.task(config)
    return Source(
        adapter,
        (whole or folder).resolve().name,
        family.model_type,
        task,
        hashes,
        tokenizers.by_side,
        plain,
        tokenizers.chat if family.kind == "causal" else None,
        owned=True,
        notes=(
            *tokenizers.notes,
            *tokenizers.beyond(sizes),
            *generation_settings.not_obeyed(folder / "generation_config.json"),
            *_notes(family, config, stated, model_config, task),
        ),
        assumed=f"task {task} is assumed from the model's class" if family.kind == "seq2seq" and task == "text2text" else None,
    )


def _taken(family: Family, config: dict[str, Any], embeds: bool, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config as it is taken: without the head where sentence-transformers reads hidden states, or where no file has a masked one.

    transformers gives a head that is missing random values; many folders of embedding models name the class of their first training.
    """
    if family.kind != "encoder":
        return config
    inside = [name.startswith(family.prefix) for name in tensors]
    headless = family.task(config) == "fill-mask" and (all(inside) or not any(inside))
    return config | {"architectures": [family.class_name({})]} if embeds or headless else config


def _notes(family: Family, config: dict[str, Any], stated: dict[str, Any], model_config: Any, task: str | None) -> list[str]:
    """What of the folder is left out, or taken for something that it does not say. stated: the config as it was found."""
    taken, named = family.class_name(config), named_class(stated)
    notes = []
    if named is None:
        notes.append(f"config.json names no architectures: taken as {taken}, task {task}")
    elif named != taken and family.kind == "encoder":
        notes.append(f"the head of {named} is left out: the bundle has the hidden states of {taken}, task {task}")
    elif named != taken:
        notes.append(f"{named} has no head: it is taken as {taken}, whose head is its table of tokens, task {task}")
    if task == "tensor" and family.task(config) != task:
        notes.append("the folder has no tokenizer: the bundle takes token ids, task tensor")
    if family.task(config) == "classification":
        notes += score_notes(config, int(model_config.num_labels))
    return notes


def _decoding(family: Family, settings: Any, sizes: dict[str, int]) -> tuple[Decoding, list[str]]:
    """The decoding of a transformers GenerationConfig, and what is wrong with it."""
    ids, problems = generation_settings.special_ids(settings, sizes["source"], sizes["target"], family.kind == "seq2seq")
    ends = ids["eos_id"] if isinstance(ids["eos_id"], list) else [] if ids["eos_id"] is None else [ids["eos_id"]]
    search, search_problems = generation_settings.read_generation(settings, sizes["target"], ends, family.kind == "seq2seq")
    return Decoding(ids, search), [*problems, *search_problems]


def _generation_config(transformers: Any, folder: Path) -> tuple[Any, Path]:
    """The settings of `generate` and their file: generation_config.json, or in its absence the keys that older configs have."""
    path = folder / "generation_config.json"
    own = path.is_file()
    if own:
        default = transformers.GenerationConfig()
        # what transformers' own class does not know, `generate` does not read either
        if unknown := sorted(name for name in read_json(path).keys() - generation_settings.KNOWN if hasattr(default, name)):
            raise CheckpointError(f"{path}: {', '.join(unknown)} is not a known setting; remove it")
    else:
        path = folder / "config.json"
    config = transformers.GenerationConfig.from_pretrained(
        folder, config_file_name=path.name, local_files_only=True, **({} if own else {"_from_model_config": True})
    )
    return config, path


def _shapes(
    cls: Any, config: Any, found: dict[str, Tensor], prefix: str, optional_tensors: tuple[str, ...], unread: tuple[str, ...]
) -> tuple[Shapes, Shapes, dict[str, Tensor]]:
    """Shapes of the tensors that must be there and of those that may, and the tensors by the class's names.

    Of tied tensors any one will do; some the class makes itself. unread: patterns of names that do not matter where the class lacks them.
    """
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        shell = cls(config)
    if _is_converted(shell):  # how, transformers alone knows: its own report of the loading is the check
        passed = [*optional_tensors, *unread]
        numbers = {name: tensor for name, tensor in _numbers(found).items() if not any(re.search(p, name) for p in passed)}
        return {}, {name: list(tensor.shape) for name, tensor in found.items()}, numbers
    state = shell.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()}
    tensors = _named(found, dict.fromkeys(state, []), prefix)
    tensors = {name: tensor for name, tensor in tensors.items() if name in shapes or name not in state}  # ids of positions and their like
    groups: dict[str, set[str]] = {}
    for target, source in shell.get_expanded_tied_weights_keys(all_submodels=True).items():
        groups.setdefault(source, {source}).add(target)
    optional = {name for group in groups.values() if len(group & tensors.keys()) for name in group}
    for source, group in groups.items():
        if not group & tensors.keys():  # one missing name stands for all
            optional |= group - {source}
    patterns = [*(cls._keys_to_ignore_on_load_missing or []), *(cls._keys_to_ignore_on_load_unexpected or []), *optional_tensors]
    optional |= {name for name in shapes if any(re.search(pattern, name) for pattern in patterns)}
    patterns += unread
    tensors = {name: tensor for name, tensor in tensors.items() if name in shapes or not any(re.search(p, name) for p in patterns)}
    return (
        {name: shape for name, shape in shapes.items() if name not in optional},
        {name: shape for name, shape in shapes.items() if name in optional},
        tensors,
    )


def _is_converted(shell: Any) -> bool:
    """Whether transformers renames, splits or joins tensors of this class's folders as it loads them, but for old names of norms."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(shell, add_legacy=False))


def _joined(shell: Any) -> list[str]:
    """Parts of names of the parameters that transformers makes of several tensors of a file, such as those of all experts of a layer."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    found = [one for one in get_model_conversion_mapping(shell, add_legacy=False) if isinstance(one, WeightConverter)]
    return [str(target) for one in found for target in one.target_patterns if "*" not in str(target)]


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without integers: tables of positions and their like, which classes make themselves."""
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _named(tensors: dict[str, Tensor], shapes: Shapes, prefix: str) -> dict[str, Tensor]:
    """Tensors of a model saved without its head are called as with one, and the other way round; old names of norms as new ones."""
    wanted, there = (any(name.startswith(prefix) for name in names) for names in (shapes, tensors))
    result = {}
    for name, tensor in tensors.items():
        if wanted and not there:
            name = prefix + name
        elif there and not wanted:
            name = name.removeprefix(prefix)
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.replace(old, new)
        result[name] = tensor
    return result


def _load(
    cls: Any,
    folder: Path,
    config: Any,
    paths: list[Path],
    types: Mapping[str, torch.dtype],
    optional_tensors: tuple[str, ...],
    unread: tuple[str, ...],
) -> Any:
    """transformers' own way from the folder to a model in float32; its report must be empty but for `optional_tensors` and `unread` ones.

    config: transformers' own, of what was made of config.json. types: of tensors that stay as they are in their files, which are mapped but
    for pickles of old versions of PyTorch; their parameters are deferred.
    """
    from_files = any(path.suffix == ".safetensors" for path in paths)
    with quiet(), refusing(folder):
        model, report = _holding(cls, types).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=from_files,
        )
    passed = {name: (*optional_tensors, *(unread if name == "unexpected_keys" else ())) for name in report}
    left = {name: [one for one in map(str, found) if not any(re.search(p, one) for p in passed[name])] for name, found in report.items()}
    if gaps := [f"{name} {sorted(found)}" for name, found in left.items() if found]:
        raise CheckpointError(f"transformers could not load all of {folder}: {'; '.join(gaps)[:300]}")
    model.requires_grad_(False)
    model.__class__ = cls
    defer_all(model)
    return model


def _holding(cls: Any, types: Mapping[str, torch.dtype]) -> Any:
    """The class with parameters of the types of their tensors, which transformers hands on without a copy then.

    All else of it, such as buffers and what no file has, is made in float32. types: by the names of parameters; those that transformers
    joins out of several tensors are of the type that all tensors have.
    """
    every = set(types.values())
    of_joined = every.pop() if len(every) == 1 else torch.float32

    class Holding(cls):
        def __init__(self, config: Any, *args: Any, **named: Any) -> None:
            super().__init__(config, *args, **named)
            joined = _joined(self)
            for name, parameter in self.named_parameters():
                kind = of_joined if any(part in name for part in joined) else parameter.dtype
                parameter.data = parameter.data.to(types.get(name, kind))

    Holding.__name__, Holding.__qualname__, Holding.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Holding
