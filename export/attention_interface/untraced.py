"""Functions that cannot be traced: complex numbers become pairs of real ones, and what depends on no input becomes what it was.

So is `1.0 - mask` of integers, which torch's exporter has no operator for: they become real numbers first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONSTANTS = ("erfinv",)
FROM_NUMBER = ("rsub", "__rsub__")
SHAPES = ("to", "unsqueeze", "__getitem__", "expand", "transpose")  # methods that do the same to both parts


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex tensor by its parts, for what turns positions."""

    real: Tensor
    imag: Tensor

    @property
    def device(self) -> torch.device:
        """As a tensor's."""
        return self.real.device

    def __mul__(self, other: Any) -> Complex:
        """(a + bi)(c + di) = (ac - bd) + (ad + bc)i."""
        if isinstance(other, Complex):
            return Complex(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)
        return Complex(self.real * other, self.imag * other)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> Complex:
        """As a tensor's."""
        return Complex(self.real[index], self.imag[index])

    def __getattr__(self, name: str) -> Any:
        """Methods in SHAPES, of both parts."""
        if name not in SHAPES:
            raise AttributeError(f"complex numbers in pairs have no {name}")
        return lambda *args, **kwargs: Complex(*(getattr(part, name)(*args, **kwargs) for part in (self.real, self.imag)))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch asks it for functions of such a number."""
        if func is torch.view_as_real:
            return torch.stack([args[0].real, args[0].imag], -1)
        return NotImplemented


class Untraced(TorchFunctionMode):
    """Replaces such functions while a class runs. constants: what those of no input gave in a run before, in turn; None in such a run."""

    def __init__(self, constants: tuple[Any, ...] | None) -> None:
        super().__init__()
        self.known = None if constants is None else iter(constants)
        self.found: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch asks it for every function."""
        if func is torch.polar:
            size, angle = args
            return Complex(size * angle.cos(), size * angle.sin())
        if func is torch.view_as_complex:
            return Complex(args[0][..., 0], args[0][..., 1])
        name = getattr(func, "__name__", "")
        if name in FROM_NUMBER and isinstance(args[1], float) and not args[0].is_floating_point():
            return args[1] - args[0].to(torch.get_default_dtype())
        if name in CONSTANTS:
            if self.known is not None:
                return torch.tensor(next(self.known))
            self.found.append(func(*args, **(kwargs or {})).tolist())
            return torch.tensor(self.found[-1])
        return func(*args, **(kwargs or {}))
