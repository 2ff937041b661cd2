"""The loss of a module is that of the distributions, whatever ids the model itself forbids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxport.quantize.auto.module_loss import DivergenceLoss
from onnxport.runtime import load
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.sessions import Sessions
from support import tiny_bundles


def test_ids_that_a_model_never_gives_are_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are minus infinity there, in float32 and in every variant."""
    advance = DecoderState.advance

    def masked(state: DecoderState) -> None:
        advance(state)
        state.logits.update_inplace(np.where(np.arange(tiny_bundles.VOCABULARY) == 7, np.float32(-np.inf), state.logits.numpy()))

    monkeypatch.setattr(DecoderState, "advance", masked)
    with load(tiny_bundles.write_bundle(tmp_path / "tiny", tiny_bundles.TinyModel("seq2seq")), threads=1) as model:
        assert model.engine is not None
        meter = DivergenceLoss(model.engine, [[5, 9, 2], [7, 2]], [[4, 6, 8], [9]], Sessions.on("cpu", 1))
        assert meter.loss({}) == 0
