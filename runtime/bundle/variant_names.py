"""Names of variants: that of a precision, and behind an @ the target that its graphs were made for, where that is not the CPU."""

from __future__ import annotations

from collections.abc import Iterable

CPU, CUDA, WEB = TARGETS = ("cpu", "cuda", "web")  # web: onnxruntime-web and onnxruntime-node, whatever they run on
_AT = "@"


def split(name: str) -> tuple[str, str]:
    """Precision and target of a variant: int8@cuda is ("int8", "cuda"), int8 is ("int8", "cpu")."""
    precision, at, target = name.partition(_AT)
    return (precision, target) if at else (name, CPU)


def named(precision: str, target: str) -> str:
    """The variant of a precision for a target."""
    return precision if target == CPU else f"{precision}{_AT}{target}"


def for_device(name: str, device: str, variants: Iterable[str]) -> str:
    """The variant that is meant on a device by the name of a precision: its own where there is one, else that of the name."""
    own = named(split(name)[0], device)
    return own if _AT not in name and own in variants else name


def suits(name: str, device: str, variants: Iterable[str]) -> bool:
    """Whether a variant is the one that its precision's name means on a device."""
    precision, target = split(name)
    return target == device or (target == CPU and for_device(precision, device, variants) == name)
