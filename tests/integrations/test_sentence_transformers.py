"""The look-alikes of sentence-transformers' classes, without that package: forms, refusals, similarities worked out by hand."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.errors import TextError, UsageError
from onnxport.export.sentence_transformers import classifying
from onnxport.integrations.sentence_transformers import CrossEncoder, SentenceTransformer, quantized
from onnxport.runtime import load
from onnxport.runtime.bundle.manifest import EncodingConfig
from support import tiny_encoder

PROMPTS = {"query": "find ", "passage": "see "}
LONG = "a b c d e f g h i j k l"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "vectors"
    settings: dict[str, Any] = {"max_length": 8, "prompts": PROMPTS, "similarity": "dot"}
    return tiny_encoder.write(out, "embedding", tiny_encoder.table(6), pooling="mean", **settings)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The bundle of a classifier with so many labels."""
    root = tmp_path_factory.mktemp("scores")

    def written(count: int, **encoding: Any) -> Path:
        return tiny_encoder.write(root / f"{count}-{len(list(root.iterdir()))}", "classification", tiny_encoder.table(count), **encoding)

    return written


def test_long_texts_are_cut_and_empty_ones_are_encoded(vectors: Path) -> None:
    model = SentenceTransformer(vectors)
    found = model.encode([LONG, "", "a b"])
    with load(vectors) as plain:
        assert np.array_equal(found[[0, 2]], plain.encode(["a b c d e f", "a b"])) and not np.array_equal(found[0], plain.encode(LONG)[0])
    assert found.shape == (3, 6) and model.encode("a b").shape == (6,)
    model.max_seq_length = 4
    assert np.array_equal(model.encode([LONG]), model.encode(["a b"])) and model.get_max_seq_length() == 4
    model.max_seq_length = 1
    with pytest.raises(UsageError, match="leave no room"):
        model.encode("a")
    with pytest.raises(UsageError, match="max_seq_length is 0"):
        model.max_seq_length = 0
    model.max_seq_length = None
    with pytest.raises(TextError, match="text 1"):
        model.encode(["a", 3])


def test_prompts_stand_before_texts(vectors: Path) -> None:
    model = SentenceTransformer(vectors, prompts={"own": "tell "})
    assert model.prompts == {"query": "find ", "document": "", "passage": "see ", "own": "tell "}
    assert np.array_equal(model.encode_query("a"), model.encode("find a"))
    assert np.array_equal(model.encode_document("a", normalize_embeddings=True), model.encode("a", normalize_embeddings=True))
    assert np.array_equal(model.encode([("a", "b")], prompt_name="own"), model.encode([("tell a", "b")]))
    assert np.array_equal(SentenceTransformer(vectors, default_prompt_name="passage").encode("a"), model.encode("see a"))
    with pytest.raises(UsageError, match="prompt_name is 'other', expected one of query, document, passage, own"):
        model.encode("a", prompt_name="other")
    with pytest.raises(UsageError, match="default_prompt_name is 'other'"):
        SentenceTransformer(vectors, default_prompt_name="other")


def test_similarities(vectors: Path) -> None:
    model = SentenceTransformer(vectors)
    assert model.similarity_fn_name == "dot" and SentenceTransformer(vectors, similarity_fn_name="cosine").similarity_fn_name == "cosine"
    first, second = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 0.0]])
    wanted: dict[str, list[float]] = {"dot": [9, 0], "cosine": [0.6, 0], "euclidean": [-4, -(13**0.5)], "manhattan": [-4, -5]}
    for name, values in wanted.items():
        model.similarity_fn_name = name
        np.testing.assert_allclose(model.similarity(first, second), np.array(values)[:, None], atol=1e-12)
        np.testing.assert_allclose(model.similarity(list(first), second[0])[:, 0], values, atol=1e-12)
        np.testing.assert_allclose(model.similarity_pairwise(first, np.repeat(second, 2, 0)), values, atol=1e-12)
        assert model.similarity(first[:0], second).shape == (0, 1)
    assert isinstance(model.similarity(torch.from_numpy(first), second), torch.Tensor)
    with pytest.raises(UsageError, match="similarity_fn_name is 'maxsim'"):
        model.similarity_fn_name = "maxsim"


def test_vectors_in_fewer_bits() -> None:
    values = np.array([[-1.0, 5.0, 0.0], [254.0, 5.0, -510.0]], np.float32)
    assert quantized(values, "float32") is values
    assert quantized(values, "uint8").tolist() == [[0, 0, 255], [255, 0, 0]] and quantized(values, "int8").tolist()[0] == [-128, -128, 127]
    assert quantized(values, "ubinary").tolist() == [[64], [192]] and quantized(values, "binary").tolist() == [[-64], [64]]
    with pytest.raises(UsageError, match="single vector"):
        quantized(values[:1], "int8")


def test_sizes_are_cut(vectors: Path) -> None:
    model = SentenceTransformer(vectors, truncate_dim=4)
    assert model.get_sentence_embedding_dimension() == 4 and model.encode("a").shape == (4,)
    assert model.encode("a", truncate_dim=2).shape == (2,)
    with model.truncate_embeddings(None):
        assert model.encode("a").shape == (6,) and model.get_embedding_dimension() == 6
    assert model.truncate_dim == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": [1]}, "modules is given"),
        ({"revision": "main"}, "revision is given"),
        ({"model_kwargs": {"dtype": "float16"}}, "model_kwargs is given"),
        ({"backend": "openvino"}, "backend is 'openvino'"),
        ({"precision": "int3"}, "precision is 'int3'"),
    ],
)
def test_what_a_bundle_cannot_follow_is_refused(vectors: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SentenceTransformer(vectors, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_value": None}, "output_value is None"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"device": "cuda"}, "device is 'cuda', this model was loaded on cpu"),
        ({"device": ["cpu", "cpu"]}, "several processes"),
        ({"pool": {}}, "several processes"),
        ({"processing_kwargs": {}}, "processing_kwargs"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_calls_that_cannot_be_followed_are_refused(vectors: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SentenceTransformer(vectors, cache_folder="/tmp", token="secret", local_files_only=True).encode(["a"], **options)


def test_scores_of_pairs(scores: Callable[..., Path]) -> None:
    one = CrossEncoder(scores(1, problem="multi", max_length=8))
    pairs = [("a", "b"), ("c", LONG), (LONG, LONG)]
    found = one.predict(pairs)
    assert found.shape == (3,) and found.dtype == np.float32 and ((found > 0) & (found < 1)).all()
    assert one.predict(pairs[0]) == found[0] and one.predict([list(pair) for pair in pairs])[1] == found[1]
    # eight tokens: three special ones, and of two long texts two and three
    assert found[2] == one.predict(("a b", "a b c")) and found[1] == one.predict(("c", "a b c d"))
    np.testing.assert_allclose(one.predict(pairs, activation_fn=lambda x: x), np.log(found / (1 - found)), rtol=1e-4)
    np.testing.assert_allclose(one.predict(pairs, activation_fn=torch.nn.Sigmoid()), found, rtol=1e-6)
    ranked = one.rank("c", ["b", LONG, "z"], return_documents=True, top_k=2)
    assert [row["score"] for row in ranked] == sorted(one.predict([("c", "b"), ("c", LONG), ("c", "z")]).tolist(), reverse=True)[:2]
    assert all(row["text"] == ["b", LONG, "z"][row["corpus_id"]] for row in ranked) and one.rank("c", []) == []
    several = CrossEncoder(scores(3, labels=["x", "y", "z"]), max_length=6)
    assert several.predict(pairs).shape == (3, 3) and several.num_labels == 3 and several.max_length == 6
    np.testing.assert_allclose(several.predict(pairs, apply_softmax=True).sum(1), 1, rtol=1e-6)
    with pytest.raises(UsageError, match="rank is for models with one label, this one has 3"):
        several.rank("c", ["b"])
    with pytest.raises(UsageError, match="num_labels is 2, this bundle has 3"):
        CrossEncoder(several.runtime.bundle.path, num_labels=2)


def test_activations_are_those_of_the_original(scores: Callable[..., Path]) -> None:
    cases = [  # config.json, labels → problem, and what CrossEncoder does
        ({}, 1, "multi", "sigmoid"),
        ({"problem_type": "regression"}, 1, "regression", "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "regression", "identity"),
        ({}, 3, "single", "identity"),
        ({"problem_type": "multi_label_classification"}, 2, "multi", "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, 2, "single", "softmax"),
    ]
    for config, labels, problem, activation in cases:
        found = classifying(EncodingConfig(), [f"L{i}" for i in range(labels)], config, labels)
        assert (found.problem, found.score_activation) == (problem, activation), config
    pairs = [("a", "b"), ("c", "d")]
    stated = CrossEncoder(scores(1, problem="regression", activation="sigmoid"))
    plain = CrossEncoder(scores(1, problem="regression"))
    np.testing.assert_allclose(stated.predict(pairs), 1 / (1 + np.exp(-plain.predict(pairs))), rtol=1e-6)


def test_other_tasks_are_refused(vectors: Path, scores: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="task is embedding, expected classification"):
        CrossEncoder(vectors)
    with pytest.raises(UsageError, match="task is classification, expected embedding"):
        SentenceTransformer(scores(2))
    with pytest.raises(UsageError, match="model_name_or_path is None"):
        SentenceTransformer()


def test_they_pickle(vectors: Path, scores: Callable[..., Path]) -> None:
    model, cross = SentenceTransformer(vectors, truncate_dim=3), CrossEncoder(scores(1))
    model.max_seq_length = 5
    assert np.array_equal(model.encode(LONG), pickle.loads(pickle.dumps(model)).encode(LONG))
    assert np.array_equal(cross.predict([("a", "b")]), pickle.loads(pickle.dumps(cross)).predict([("a", "b")]))


def test_neither_torch_nor_the_original_is_needed(vectors: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["sentence_transformers"] = None
from onnxport.integrations.sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(vectors)!r})
print(model.similarity(model.encode(["a"]), model.encode(["a b"])).shape)
for options in ({{"convert_to_tensor": True}}, {{"convert_to_numpy": False}}):
    try:
        model.encode("a", **options)
    except ValueError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    shape, first, second = result.stdout.splitlines()
    assert (
        shape == "(1, 1)" and first.startswith("convert_to_tensor=True needs torch") and second.startswith("convert_to_numpy=False needs")
    )
