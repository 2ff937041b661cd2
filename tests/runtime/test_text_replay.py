"""On golden texts: what is measured of a variant is what NumPy makes of its logits and the original's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import BundleError
from onnxport.runtime import text_replay
from onnxport.runtime.bundle.kept import Kept, log_softmax
from onnxport.runtime.bundle.manifest import EncodingConfig
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.text_replay import answers
from onnxport.runtime.verify import replay
from support import tiny_bundles as tiny

LENGTHS, FIRST, ENDS = [5, 17, 2, 9], [1, 11, 1, 4], [5, 15, 2, 9]


def text_case(model: tiny.TinyModel) -> dict[str, np.ndarray]:
    """The case `text` of a model: rows of several lengths, some of which are scored from their middle on."""
    rng = np.random.default_rng(8)
    ids, mask = rng.integers(4, tiny.VOCABULARY, (4, 17)), np.ones((4, 6), np.int32)
    mask[2, 3:] = 0
    sources = rng.integers(4, tiny.VOCABULARY, mask.shape)
    parts = []
    for row, (length, first, end) in enumerate(zip(LENGTHS, FIRST, ENDS, strict=True)):
        ids[row, length:] = tiny.PAD
        parts.append(Kept.of(logits_of(model, sources[row][mask[row] > 0], ids[row], first, end), ids[row, first:end]))
    case = {"source_ids": sources, "source_mask": mask} if model.kind == "seq2seq" else {}
    names = ("target_ids", "target_lengths") if model.kind == "seq2seq" else ("input_ids", "lengths")
    case |= dict(zip(names, (ids, np.array(LENGTHS)), strict=True)) | Kept.joined(parts).arrays()
    case |= {"first": np.array(FIRST), "scored": np.array(ENDS) - FIRST}
    return {f"text/{name}": array for name, array in case.items()}


def logits_of(model: tiny.TinyModel, source: np.ndarray, ids: np.ndarray, first: int, end: int) -> np.ndarray:
    return model.logits(source.tolist(), ids[: end - 1].tolist())[first - 1 :]


def bundle_of(out: Path, kind: str, change: Mapping[str, Any] | None = None, variant: int = 0) -> Bundle:
    """A bundle with texts, whose graphs are of the model with seed `variant`."""
    model, path = tiny.TinyModel(kind), tiny.write_bundle(out, tiny.TinyModel(kind, variant))
    np.savez(path / "golden.npz", **tiny.goldens(model) | text_case(model) | dict(change or {}))
    return Bundle.read(path)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_model_itself_does_not_differ(tmp_path: Path, kind: str) -> None:
    found = replay(bundle_of(tmp_path / "bundle", kind), "fp32", threads=1)
    assert found["kl"] < 1e-7 and found["top1_agreement"] == 1.0 and abs(found["perplexity_change"]) < 1e-5
    assert found["relative_error"] < 1e-5 and found["finite"]


@pytest.mark.parametrize("positions", [8, 40, 2048])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_another_model_differs_by_what_numpy_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, positions: int) -> None:
    monkeypatch.setattr(text_replay, "POSITIONS", positions)  # a row a batch, two, all
    found = replay(bundle_of(tmp_path / "bundle", kind, variant=3), "fp32", threads=1)
    one, other = tiny.TinyModel(kind), tiny.TinyModel(kind, 3)
    case = text_case(one)
    ids, rows = case["text/target_ids" if kind == "seq2seq" else "text/input_ids"], []
    for row, (end, first) in enumerate(zip(ENDS, FIRST, strict=True)):
        source = case["text/source_ids"][row][case["text/source_mask"][row] > 0] if kind == "seq2seq" else np.zeros(0, int)
        p, q = (log_softmax(logits_of(model, source, ids[row], first, end)) for model in (one, other))
        own = ids[row, first:end]
        places = np.arange(len(own))
        rows.append(np.stack([(np.exp(p) * (p - q)).sum(1), p.argmax(1) == q.argmax(1), p[places, own], q[places, own]]))
    divergence, same, ours, theirs = np.concatenate(rows, 1).mean(1)
    assert found["kl"] == pytest.approx(divergence, rel=1e-3) and divergence > 0.1
    assert found["top1_agreement"] == pytest.approx(same)
    assert found["perplexity"] == pytest.approx(np.exp(-theirs), rel=1e-3)
    assert found["perplexity_change"] == pytest.approx(np.exp(ours - theirs) - 1, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"text/first": np.array([1, 11, 0, 4])},
        {"text/first": np.array([1, 11, 1])},
        {"text/lengths": np.array([5, 18, 2, 9])},
        {"text/lengths": np.array([5, 14, 2, 9])},
        {"text/scored": np.array([4, 3, 1, 5])},
        {"text/scored": np.array([5, 3, 1, 5])},
        {"text/rest": np.zeros(3, np.float32)},
        {"text/top_ids": np.full((14, 40), tiny.VOCABULARY)},
    ],
)
def test_texts_that_do_not_fit_together_do_not_pass(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(BundleError, match="incomplete"):
        replay(bundle_of(tmp_path / "bundle", "causal", change), "fp32", threads=1)


# ---- encoders


def encoder(task: str, by_token: bool = False, **config: Any) -> Encoder:
    outputs = frozenset({"logits", "start_logits", "last_hidden_state"} if by_token else ())
    return Encoder(task, EncodingConfig(**config), None, {}, {}, dict, outputs)


def replayed(golden: np.ndarray, found: np.ndarray, name: str = "logits", mask: np.ndarray | None = None) -> Any:
    mask = np.ones((len(golden), 3), np.int64) if mask is None else mask
    return {"in/input_ids": mask, "in/attention_mask": mask, f"out/{name}": golden}, {name: found}


def test_labels_count_where_the_original_is_decided() -> None:
    golden = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.05, 0.0]])
    found = np.array([[1.0, 0.0], [0.0, 9.0], [2.0, 0.0], [0.0, 0.05]])
    result = answers(encoder("classification"), [replayed(golden, found)])
    assert result["label_agreement"] == pytest.approx(2 / 3)
    assert result["cosine_least"] == pytest.approx(0.0) and result["cosine"] == pytest.approx(0.5)


def test_several_labels_may_hold() -> None:
    golden, found = np.array([[3.0, -3.0, 0.01]]), np.array([[0.5, 0.5, -0.5]])
    assert answers(encoder("classification", problem="multi"), [replayed(golden, found)])["label_agreement"] == 0.5


def test_a_single_number_says_neither() -> None:
    golden = np.array([[3.0], [1.0]])
    assert answers(encoder("classification", problem="regression"), [replayed(golden, -golden)]) == {}


def test_each_token_has_a_label_but_padding() -> None:
    golden = np.array([[[4.0, 0.0], [0.0, 4.0], [0.0, 4.0]]])
    found = np.array([[[4.0, 0.0], [4.0, 0.0], [9.0, 0.0]]])
    mask = np.array([[1, 1, 0]])
    assert answers(encoder("token-classification", by_token=True), [replayed(golden, found, mask=mask)])["label_agreement"] == 0.5


def test_the_start_of_an_answer_is_a_label() -> None:
    golden, found = np.array([[0.0, 5.0, 1.0], [5.0, 0.0, 9.0]]), np.array([[0.0, 3.0, 1.0], [1.0, 2.0, 9.0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    assert answers(encoder("question-answering", True), [replayed(golden, found, "start_logits", mask)])["label_agreement"] == 0.5


def test_outputs_are_told_by_their_names() -> None:
    start, end, mask = np.array([[5.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 5.0]]), np.ones((1, 3), np.int64)
    case = {"in/input_ids": mask, "in/attention_mask": mask, "out/end_logits": end, "out/start_logits": start}
    result = answers(encoder("question-answering", True), [(case, {"start_logits": start, "end_logits": end})])
    assert result == {"cosine": pytest.approx(1.0), "cosine_least": pytest.approx(1.0), "label_agreement": 1.0}


def test_texts_are_compared_by_their_vectors() -> None:
    golden = np.zeros((1, 3, 2))
    golden[0] = [[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]
    found = golden[:, [1, 0, 2]]  # the same mean of the real tokens
    mask = np.array([[1, 1, 0]])
    result = answers(encoder("embedding", True, pooling="mean"), [replayed(golden, found, "last_hidden_state", mask)])
    assert result == {"cosine": pytest.approx(1.0), "cosine_least": pytest.approx(1.0)}
    first = answers(encoder("embedding", True, pooling="cls"), [replayed(golden, found, "last_hidden_state", mask)])
    assert first["cosine"] == pytest.approx(0.0)
