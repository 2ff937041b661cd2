"""Folders whose weights are quantized already: their codes are expanded to the very numbers that they stand for, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxport.errors import CheckpointError, one_line
from onnxport.export.checkpoints import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from onnxport.export.checkpoints.plain import CONFIG
from onnxport.export.config_checks import named_class, read_json
from onnxport.export.transformers_library import import_transformers, quiet, refusing
from onnxport.export.weights import WeightFiles, page_out

SETTINGS = ("quantization_config", "compression_config")  # of config.json
BESIDE = "quantize_config.json"  # AutoGPTQ's own file, before its settings went into config.json
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How one weight is stored.

    parts: the ends of its tensors' names, first the one that shows that it is stored so. plain: the end of the name that it gets.
    weight: its parts, by these ends without their first character → float32. dropped: ends of tensors that a kernel alone needs.
    """

    parts: tuple[str, ...]
    weight: Callable[[Parts, Mapping[str, Any]], Tensor]
    plain: str = ".weight"
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """What a `quant_method` means. problem: why its settings cannot be read. dropped: ends of tensors of no weight that are left out."""

    name: str
    formats: tuple[Format, ...]
    problem: Callable[[Mapping[str, Any]], str | None] = lambda settings: None
    dropped: tuple[str, ...] = ()


_BITSANDBYTES = (
    ".weight",
    ".SCB",
    ".weight_format",
    *(f".weight.{end}" for end in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")),
)
_INPUTS = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point")
METHODS = {
    "gptq": Method("GPTQ", (Format((".qweight", ".qzeros", ".scales", ".g_idx"), gptq.weight),), gptq.problem),
    "awq": Method("AWQ", (Format((".qweight", ".qzeros", ".scales"), awq.weight),), awq.problem),
    "fp8": Method("FP8", (Format((".weight_scale_inv", ".weight"), fp8.fine_grained, dropped=(".activation_scale", *_INPUTS)),)),
    "fbgemm_fp8": Method("FP8", (Format((".weight_scale", ".weight"), fp8.by_rows, dropped=(".input_scale_ub", *_INPUTS)),)),
    "compressed-tensors": Method(
        "compressed-tensors",
        (
            Format(
                (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale"),
                compressed_tensors.packed,
                dropped=_INPUTS,
            ),
            Format((".weight_scale", ".weight", ".weight_zero_point"), compressed_tensors.scaled, dropped=_INPUTS),
        ),
        compressed_tensors.problem,
        tuple(f".{part}_{kind}" for part in "qkv" for kind in ("scale", "zero_point")),
    ),
    "mxfp4": Method("MXFP4", (Format(("_blocks", "_scales"), mxfp4.weight, plain=""),)),
    "bitsandbytes": Method(
        "bitsandbytes",
        (
            Format((".weight.absmax", *_BITSANDBYTES, *(f".{state}" for state in bitsandbytes.STATES)), bitsandbytes.weight),
            Format((".SCB", *_BITSANDBYTES), bitsandbytes.weight),
        ),
    ),
}


def settings_of(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a folder says that it is quantized; None where it is not. CheckpointError: in no way that is known."""
    found = next((config[key] for key in SETTINGS if config.get(key)), None)
    if found is None and (folder / BESIDE).is_file():
        found = {"quant_method": "gptq"} | read_json(folder / BESIDE)
    if found is None:
        return None
    where = f"{folder / CONFIG}: quantization_config"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is {found!r:.60}, expected an object")
    method = found.get("quant_method") or ("bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else None)
    if not isinstance(method, str) or method not in METHODS:
        raise CheckpointError(
            f"{where} has the quant_method {method!r:.60}, expected one of {', '.join(METHODS)}; give the model before it was quantized"
        )
    if problem := METHODS[method].problem(found):
        raise CheckpointError(f"{where}: {problem}; give the model before it was quantized")
    return {**found, "quant_method": method}


def expanded(files: WeightFiles, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files by the name that the class has for it, one after the other. CheckpointError: codes cannot be read.

    config: of the folder without its settings. settings: those of `settings_of`.
    """
    method, used = METHODS[settings["quant_method"]], set[str]()
    for form in method.formats:
        for module in _modules(files, form, used):
            names = {end: module + end for end in form.parts if module + end in files.tensors}
            parts = {end.lstrip("._"): files.tensors[full] for end, full in names.items()}
            used |= {*names.values(), *(module + end for end in form.dropped)}
            yield module + form.plain, _weight(form, parts, settings, f"{files.paths[0]}: {module} cannot be read as {method.name}")
            page_out(parts.values())
    if not used:
        raise CheckpointError(
            f"{files.paths[0]} holds no weight in the form of {method.name}, which {CONFIG} tells of; copy the folder again"
        )
    used |= {name for name in files.tensors if name.endswith(method.dropped)} if method.dropped else set()
    used |= _made_up(files, config) if method is METHODS["gptq"] else set()
    yield from ((name, tensor) for name, tensor in files.tensors.items() if name not in used)


def _modules(files: WeightFiles, form: Format, used: set[str]) -> Iterator[str]:
    """What comes before the ends of names, for each weight that is stored in a form."""
    mark = form.parts[0]
    for name in sorted(files.tensors):
        if name.endswith(mark) and name not in used and (mark != ".weight_scale" or name.removesuffix("_scale") in files.tensors):
            yield name.removesuffix(mark)


def _weight(form: Format, parts: Parts, settings: Mapping[str, Any], failure: str) -> Tensor:
    try:
        return form.weight(parts, settings)
    except Exception as error:  # shapes that do not fit make any kind
        what = f"it lacks {error.args[0]!r:.40}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{failure} ({what}); copy the folder again") from error


def _made_up(files: WeightFiles, config: Mapping[str, Any]) -> set[str]:
    """Biases of zeros that the model's class has not: older tools of GPTQ gave every layer one."""
    zeros = {name for name, tensor in files.tensors.items() if name.endswith(".bias") and not tensor.any()}
    named = named_class(config)
    cls = getattr(import_transformers(), named, None) if isinstance(named, str) else None
    if not zeros or cls is None:
        return set()
    from transformers.initialization import no_init_weights

    with quiet(), refusing(files.paths[0].parent), torch.device("meta"), no_init_weights():
        known = set(cls(cls.config_class.from_dict(dict(config))).state_dict())
    return zeros - known


def notes(settings: Mapping[str, Any]) -> Iterator[str]:
    """What of a quantized folder is left out, a sentence each."""
    name = METHODS[settings["quant_method"]].name
    yield f"the weights are those that {name} stored, expanded to float32"
    if settings.get("activation_scheme") or any(group.get("input_activations") for group in compressed_tensors.groups(settings)):
        yield f"{name} may round activations in its own kernels; here they stay as they are"
    if settings.get("kv_cache_scheme"):
        yield "the scales of a quantized cache are left out"
