"""Checks the canonical model against the golden answers of the user's own class."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxport.errors import ParityError
from onnxport.export.canonical import Built, CanonicalDecoding

TOLERANCE = 1e-4


def agree(original: Tensor, canonical: Tensor, what: str) -> None:
    """ParityError where the canonical model and the user's own class differ by more than `TOLERANCE` of the answer's size."""
    bound = TOLERANCE * max(1.0, original.abs().max().item())
    difference = (original - canonical).abs().max().item()
    if not difference <= bound:
        raise ParityError(
            f"{what} of the canonical model differ from the original's by {difference:.2e}, more than {bound:.2e}; use Module(...)"
        )


def check_seq2seq(built: Built, goldens: dict[str, np.ndarray]) -> None:
    """ParityError unless the canonical graphs give the golden logits, by prefill and by cached steps."""
    names = ("source_ids", "source_mask", "target_ids", "target_lengths", "logits")
    for case in cases(goldens, "seq"):
        source, mask, ids, lengths, logits = (torch.from_numpy(goldens[f"{case}/{name}"]) for name in names)
        flat = built.graphs["encoder"].module(source, mask)
        memory = {"source_mask": mask, "cross": list(zip(flat[::2], flat[1::2], strict=True))}
        _check_decoding(built, ids, lengths, logits, memory)


def check_causal(built: Built, goldens: dict[str, np.ndarray]) -> None:
    """ParityError unless the canonical decoder gives the golden logits, by prefill and by cached steps."""
    for case in cases(goldens, "seq"):
        ids, lengths, logits = (torch.from_numpy(goldens[f"{case}/{name}"]) for name in ("input_ids", "lengths", "logits"))
        _check_decoding(built, ids, lengths, logits, {})


def _check_decoding(built: Built, ids: Tensor, lengths: Tensor, logits: Tensor, memory: dict[str, Any]) -> None:
    decoder = built.graphs["decoder"]
    decoding = CanonicalDecoding(decoder.module, *built.head(), len(decoder.stack.layers))
    compared = (torch.arange(ids.shape[1])[None, :] < lengths[:, None])[:, :, None]
    agree(logits, decoding.prefill(ids, **memory) * compared, "logits of a prefill")
    agree(logits, decoding.steps(ids, **memory) * compared, "logits of cached steps")


def cases(goldens: dict[str, np.ndarray], prefix: str) -> list[str]:
    """Names of the cases that begin with `prefix`."""
    return sorted({name.split("/")[0] for name in goldens if name.startswith(prefix)})
