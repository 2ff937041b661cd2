"""Models that answer in one pass: raw arrays, and texts to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxport.errors import BundleError, DataError, TextError, UsageError
from onnxport.runtime.bundle import Bundle, Variant
from onnxport.runtime.session import NUMPY_TYPES, Sessions, first_line
from onnxport.runtime.tokenizer import TextTokenizer, check_ids

PADDING = 1.25  # a batch is cut where it would compute this many times its own tokens


class Encoder:
    """The one graph of an encoder or tensor bundle."""

    def __init__(self, bundle: Bundle, variant: Variant, sessions: Sessions, tokenizer: TextTokenizer | None) -> None:
        roles = [r for r in ("model", "encoder") if r in variant.graphs]
        if not roles:
            raise BundleError(f"{bundle.path}: variant {variant.name} has neither a model nor an encoder graph; export the model again")
        self._session = sessions.open(bundle.file(variant.graphs[roles[0]]))
        self._task, self._config, self._tokenizer = bundle.task, bundle.encoding, tokenizer
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name. DataError names what does not fit."""
        absent, extra = [n for n in self.inputs if n not in inputs], [n for n in inputs if n not in self.inputs]
        if absent or extra:
            found = "lacks " + ", ".join(absent) if absent else "has unknown " + ", ".join(extra)
            raise DataError(f"the input {found}; expected arrays named {', '.join(self.inputs)}")
        for name, given in inputs.items():
            self._check(name, np.asarray(given))
        for name in ("input_ids",) if self._config.vocab_size else ():
            if name in inputs:
                check_ids(np.asarray(inputs[name]).ravel().tolist(), self._config.vocab_size)
        try:
            results = self._session.run(None, {n: np.ascontiguousarray(a) for n, a in inputs.items()})
        except Exception as e:  # ONNX Runtime's errors share no base class
            raise DataError(f"the model cannot take these arrays ({first_line(e)}); check that their sizes fit together") from e
        return dict(zip(self.outputs, results, strict=True))

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Pooled vectors float32 [texts, hidden]."""
        if self._task != "embedding" or "last_hidden_state" not in self.outputs:
            raise UsageError(f"this bundle's task is {self._task}, expected embedding to encode texts; use run")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}, expected a whole number from 1")
        rows = self._ids(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors: dict[int, np.ndarray] = {}
        for group in _groups(order, [len(r) for r in rows], batch_size):
            for i, vector in zip(group, self._vectors([rows[i] for i in group]), strict=True):
                vectors[i] = vector
        return np.stack([vectors[i] for i in range(len(rows))]) if rows else np.zeros((0, 0), np.float32)

    def _vectors(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        ids, mask = np.full((len(rows), longest), self._config.pad_id, np.int64), np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self.run({n: feeds[n] for n in self.inputs if n in feeds})["last_hidden_state"].astype(np.float32)
        if self._config.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[:, :, None].astype(np.float32)
            pooled = np.where(weights > 0, hidden, 0).sum(1) / weights.sum(1)
        if self._config.normalize:
            pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return pooled

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._tokenizer is None:
            raise TextError("the bundle has no tokenizer, so it cannot read text; use run with token ids")
        rows = self._tokenizer.encode(texts)
        for i, row in enumerate(rows):
            if not row:
                raise TextError(f"text {i} has no tokens, expected some text; leave it out")
            if self._config.max_length is not None and len(row) > self._config.max_length:
                raise TextError(f"text {i} has {len(row)} tokens, the model takes at most {self._config.max_length}; shorten or split it")
        return rows

    def _check(self, name: str, array: np.ndarray) -> None:
        wanted = self.inputs[name]
        kind = NUMPY_TYPES.get(wanted.type, wanted.type)
        if str(array.dtype) != kind:
            raise DataError(f"{name} is {array.dtype}, expected {kind}; convert it with .astype({kind!r})")
        if array.ndim != len(wanted.shape):
            raise DataError(f"{name} has {array.ndim} axes, expected {len(wanted.shape)} ({', '.join(map(str, wanted.shape))})")
        for axis, (found, size) in enumerate(zip(array.shape, wanted.shape, strict=True)):
            if isinstance(size, int) and found != size:
                raise DataError(f"{name} has size {found} on axis {axis}, expected {size}")
            if found == 0:
                raise DataError(f"{name} is empty on axis {axis}, expected at least 1")


def _groups(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of sorted items, cut also where padding would grow beyond PADDING."""
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < size:
            group = groups[-1]
            if lengths[i] * (len(group) + 1) <= PADDING * (sum(lengths[j] for j in group) + lengths[i]):
                group.append(i)
                continue
        groups.append([i])
    return groups
