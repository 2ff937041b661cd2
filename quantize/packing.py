"""Integers in blocks, as ONNX Runtime's MatMulNBits and GatherBlockQuantized store them.

Both operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """What integers stand for in each block: value = (code - zero) * scale.

    scale float32 [N, blocks], of either sign and never 0; zero uint8 [N, blocks], or None: the middle, 8 or 128.
    """

    bits: int
    size: int
    scale: np.ndarray
    zero: np.ndarray | None = None

    @property
    def middle(self) -> int:
        """The code of 0 where there are no zero points."""
        return 1 << (self.bits - 1)

    @property
    def least(self) -> int:
        """The least code: symmetric 8 bit leaves one out, so that both signs reach as far."""
        return 1 if self.bits == 8 and self.zero is None else 0

    @property
    def offset(self) -> np.ndarray:
        """float32 [N, blocks]: the code of 0."""
        return np.full_like(self.scale, self.middle) if self.zero is None else self.zero.astype(np.float32)

    def nearest(self, blocks: np.ndarray) -> np.ndarray:
        """blocks float [N, blocks, size] -> the nearest codes, uint8 of the same shape."""
        codes = np.rint(blocks / self.scale[:, :, None]) + self.offset[:, :, None]
        return codes.clip(self.least, (1 << self.bits) - 1).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """codes uint8 [N, blocks, size] -> float32 of the same shape."""
        found: np.ndarray = (codes.astype(np.float32) - self.offset[:, :, None]) * self.scale[:, :, None]
        return found

    def packed_zero(self) -> np.ndarray | None:
        """uint8 [N, ceil(blocks * bits / 8)], or None."""
        return None if self.zero is None else pack(self.zero, self.bits)


@dataclass(frozen=True)
class Blocks:
    """A weight [N, K] in integers: codes uint8 [N, blocks, size], what the padding of the last block holds stands for 0."""

    grid: Grid
    codes: np.ndarray

    def packed(self) -> np.ndarray:
        """uint8 [N, blocks, size * bits / 8]."""
        return pack(self.codes, self.grid.bits)

    def values(self, k: int) -> np.ndarray:
        """float32 [N, K]."""
        return self.grid.values(self.codes).reshape(len(self.codes), -1)[:, :k]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n] -> [..., ceil(n * bits / 8)]: of two values of 4 bits the first is the low half of their byte."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    found: np.ndarray = codes[..., 0::2] | codes[..., 1::2] << 4
    return found


def in_blocks(weight: np.ndarray, size: int) -> np.ndarray:
    """float [N, K] -> float32 [N, blocks, size]; the last block is filled up with 0."""
    n, k = weight.shape
    blocks = -(-k // size)
    padded = np.zeros((n, blocks * size), np.float32)
    padded[:, :k] = weight
    return padded.reshape(n, blocks, size)
