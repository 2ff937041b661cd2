"""The classes for Ray without Ray: columns in, columns out; tests/on_ray has them on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import DataError, UsageError
from onnxport.integrations.ray import Classify, Encode, Generate, application
from onnxport.runtime import load
from support import tiny_bundles, tiny_encoder


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder.write(tmp_path_factory.mktemp("bundles") / "vectors", "embedding", tiny_encoder.table(6), pooling="mean")


def test_texts_become_a_column(vectors: Path, tmp_path: Path) -> None:
    batch = {"text": np.array(["a b", "c"], object), "id": np.arange(2)}
    found = Encode(vectors, threads=1, output="vector", normalize_embeddings=True)(batch)
    with load(vectors) as model:
        assert np.array_equal(found["vector"], model.encode(["a b", "c"], normalize_embeddings=True))
    assert list(found) == ["text", "id", "vector"] and list(batch) == ["text", "id"]
    labels = tiny_encoder.write(tmp_path / "labels", "classification", tiny_encoder.table(2), labels=["good", "bad"])
    rows = Classify(labels, threads=1, column="line")({"line": np.array(["a", "b"])})["output"]
    assert [set(row["scores"]) for row in rows] == [{"good", "bad"}] * 2 and all(row["label"] in row["labels"] for row in rows)
    translator = tiny_bundles.write_bundle(tmp_path / "translator", tiny_bundles.TinyModel("seq2seq"))
    answers = Generate(translator, threads=1, max_new_tokens=5)({"text": np.array(["w5 w9", "w7"])})["output"]
    with load(translator, threads=1) as model:
        assert answers.tolist() == [one.text for one in model.generate(["w5 w9", "w7"], max_new_tokens=5)]


def test_what_is_missing_is_named(vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has the columns line, expected text; name it with column="):
        Encode(vectors, threads=1)({"line": np.array(["a"])})
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs ray .* 'onnxport\\[ray\\]'"):
        Encode(vectors)
    with pytest.raises(UsageError, match="an application of Ray Serve needs ray"):
        application([str(vectors)])
