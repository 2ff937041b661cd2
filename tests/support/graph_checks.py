"""Runs standard graphs in ONNX Runtime, as a runtime would, and states what must hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxport.export.exported import Exported
from onnxport.quantize.fusion import fuse
from onnxport.runtime.processor import make_exact


def session(model: ir.Model, role: str) -> onnxruntime.InferenceSession:
    """ONNX lets Attention's mask broadcast over the queries and ONNX Runtime does not: the fusion stage mends that for the target `any`."""
    model, _ = fuse(model, role, "any")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    make_exact(options)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


class Decoding:
    """The decoder graph with its cache, all rows alike in length."""

    def __init__(self, exported: Exported) -> None:
        self.decoder, self.generation = session(exported.graphs["decoder"], "decoder"), exported.generation
        self.layers = exported.generation.layers

    def empty(self, batch: int) -> list[np.ndarray]:
        shape = (batch, self.generation.kv_heads, 0, self.generation.head_size)
        return [np.zeros(shape, np.float32) for _ in range(2 * self.layers)]

    def call(self, ids: np.ndarray, past: list[np.ndarray], index: int, memory: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Logits of position `index` of `ids` [batch, length], and the grown cache."""
        batch, length = ids.shape
        before = past[0].shape[2]
        mask = np.tril(np.ones((before + length, before + length), bool))[before:]
        feeds = {
            "input_ids": ids,
            "position_ids": np.broadcast_to(np.arange(before, before + length), ids.shape).copy(),
            "logits_index": np.full(batch, index, np.int64),
            "self_mask": np.broadcast_to(mask, (batch, 1, length, before + length)).copy(),
            **{f"past_{kind}_{i}": past[2 * i + j] for i in range(self.layers) for j, kind in enumerate(("key", "value"))},
        }
        return self.decoder.run(None, feeds | memory)

    def prefill(self, ids: np.ndarray, memory: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [batch, length, vocabulary], each from a prefill of everything."""
        return np.stack([self.call(ids, self.empty(len(ids)), i, memory)[0] for i in range(ids.shape[1])], 1)

    def in_chunks(self, ids: np.ndarray, memory: dict[str, np.ndarray], size: int) -> np.ndarray:
        """Logits of each chunk's last position, `size` tokens at a time through the cache: [batch, chunks, vocabulary]."""
        past, rows = self.empty(len(ids)), []
        for start in range(0, ids.shape[1], size):
            chunk = ids[:, start : start + size]
            logits, *past = self.call(chunk, past, chunk.shape[1] - 1, memory)
            rows.append(logits)
        return np.stack(rows, 1)


def memory_of(exported: Exported, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What the encoder graph gives the decoder."""
    encoder = session(exported.graphs["encoder"], "encoder")
    names = [output.name for output in encoder.get_outputs()]
    return dict(zip(names, encoder.run(None, {"input_ids": ids, "source_mask": mask}), strict=True)) | {"source_mask": mask}


def assert_seq2seq_graphs_equal_original(exported: Exported, beams: int = 1) -> None:
    """Prefill and cached steps of every golden case, each source shared by `beams` rows."""
    decoding, goldens = Decoding(exported), exported.goldens
    cases = sorted({name.split("/")[0] for name in goldens if name.startswith("seq")})
    assert len(cases) >= 3
    for case in cases:
        values = {name: goldens[f"{case}/{name}"] for name in ("source_ids", "source_mask", "target_ids", "target_lengths", "logits")}
        memory = memory_of(exported, values["source_ids"], values["source_mask"])
        ids = np.repeat(values["target_ids"], beams, 0)
        wanted, lengths = np.repeat(values["logits"], beams, 0), np.repeat(values["target_lengths"], beams)
        assert_rows_equal(decoding.prefill(ids, memory), wanted, lengths)
        assert_rows_equal(decoding.in_chunks(ids, memory, 1), wanted, lengths)


def assert_causal_graph_equals_original(exported: Exported) -> None:
    decoding, goldens = Decoding(exported), exported.goldens
    for case in sorted({name.split("/")[0] for name in goldens if name.startswith("seq")}):
        ids, lengths, wanted = (goldens[f"{case}/{name}"] for name in ("input_ids", "lengths", "logits"))
        assert_rows_equal(decoding.prefill(ids, {}), wanted, lengths)
        assert_rows_equal(decoding.in_chunks(ids, {}, 1), wanted, lengths)


def assert_rows_equal(found: np.ndarray, wanted: np.ndarray, lengths: np.ndarray) -> None:
    for row, right, length in zip(found, wanted, lengths, strict=True):
        np.testing.assert_allclose(row[:length], right[:length], atol=1e-4, rtol=1e-4)


def assert_tensor_graph_equals_original(exported: Exported) -> None:
    """Every golden case of an encoder or a directly traced module."""
    ((role, model),) = exported.graphs.items()
    running = session(model, role)
    names = [output.name for output in running.get_outputs()]
    cases = sorted({name.split("/")[0] for name in exported.goldens})
    assert len(cases) >= 2
    for case in cases:
        prefix = f"{case}/in/"
        feeds = {name.removeprefix(prefix): value for name, value in exported.goldens.items() if name.startswith(prefix)}
        for name, found in zip(names, running.run(None, feeds), strict=True):
            wanted = exported.goldens[f"{case}/out/{name}"]
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4, err_msg=f"{case} {name}")
