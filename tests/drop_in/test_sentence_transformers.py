"""The classes beside the originals of sentence-transformers, on tiny folders: `make test-drop-in`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers as theirs
import torch

from onnxport.integrations import sentence_transformers as ours
from support.drop_in_folders import LONG, PAIRS, PROMPTS, TEXTS, bundled, cross_encoder, embedder

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
EMBEDDERS: dict[str, dict[str, Any]] = {
    "mean": {"settings": {"prompts": PROMPTS}},
    "cls": {
        "pooling": "cls",
        "include_prompt": False,
        "settings": {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "dot", "truncate_dim": 12},
    },
}
ENCODINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "prompt": {"prompt": "note: "},
    "prompt_name": {"prompt_name": "passage"},
    "truncated": {"truncate_dim": 7},
    "normalized": {"normalize_embeddings": True, "truncate_dim": 9},
    "small batches": {"batch_size": 2},
    "int8": {"precision": "int8"},
    "uint8": {"precision": "uint8"},
    "binary": {"precision": "binary"},
    "ubinary": {"precision": "ubinary"},
}
FORMS = ("pairs", "one", "list", "lists", "none")
CROSS: dict[str, dict[str, Any]] = {
    "one": {"labels": 1},
    "identity": {"labels": 1, "activation": "Identity"},
    "regression": {"labels": 1, "problem": "regression"},
    "three": {"labels": 3},
    "several": {"labels": 3, "problem": "multi_label_classification"},
    "sigmoids": {"labels": 3, "activation": "Sigmoid"},
}


@pytest.fixture(scope="module", params=EMBEDDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A SentenceTransformer of theirs and of ours."""
    folder = embedder(tmp_path_factory.mktemp("embedder") / request.param, **EMBEDDERS[request.param])
    return theirs.SentenceTransformer(str(folder), device="cpu"), ours.SentenceTransformer(bundled(folder))


@pytest.fixture(scope="module", params=CROSS)
def cross(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A CrossEncoder of theirs and of ours."""
    folder = cross_encoder(tmp_path_factory.mktemp("cross") / request.param, **CROSS[request.param])
    return theirs.CrossEncoder(str(folder), device="cpu"), ours.CrossEncoder(bundled(folder))


def parameters(method: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and defaults in their order, without those for any other name."""
    return [(name, one.default) for name, one in inspect.signature(method).parameters.items() if one.kind is not one.VAR_KEYWORD]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("SentenceTransformer", name) for name in ("__init__", "encode", "encode_query", "encode_document", "similarity")),
        *(("SentenceTransformer", name) for name in ("similarity_pairwise", "truncate_embeddings")),
        *(("CrossEncoder", name) for name in ("__init__", "predict", "rank")),
    ],
)
def test_arguments_and_defaults_are_theirs(kind: str, method: str) -> None:
    original, own = parameters(getattr(getattr(theirs, kind), method)), parameters(getattr(getattr(ours, kind), method))
    if method == "__init__":
        assert [name for name, _ in own[len(original) :]] == ["precision", "threads"]
        own = own[: len(original)]
    expected = [(name, None if name == "inputs" or default is inspect.Parameter.empty else default) for name, default in original]
    assert [(name, None if default is inspect.Parameter.empty else default) for name, default in own] == expected


@pytest.mark.parametrize("options", ENCODINGS.values(), ids=ENCODINGS)
def test_encode(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    expected, found = (model.encode(TEXTS, **options) for model in pair)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype == np.float32:
        np.testing.assert_allclose(found, expected, **CLOSE)
    elif "binary" in options["precision"]:
        assert np.array_equal(found, expected)
    else:  # a number beside the end of a step may fall to its other side
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1 and (found == expected).mean() > 0.97


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("inputs", ["a dog", LONG * 3, ["a dog", "the cat"], ("a dog", "x"), np.array(["a dog", "x"]), [("a dog", "x")]])
def test_forms_of_inputs(pair: tuple[Any, Any], method: str, inputs: Any) -> None:
    expected, found = (getattr(model, method)(inputs) for model in pair)
    assert type(found) is type(expected) and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_nothing_and_tensors_and_tokens(pair: tuple[Any, Any]) -> None:
    original, own = pair
    assert own.encode([]).shape == original.encode([]).shape
    expected, found = (model.encode(TEXTS, convert_to_tensor=True) for model in pair)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, **CLOSE)
    expected, found = (model.encode(TEXTS, convert_to_numpy=False) for model in pair)
    assert isinstance(found, list) and all(isinstance(one, torch.Tensor) for one in found)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), **CLOSE)
    expected, found = (model.encode(TEXTS, output_value="token_embeddings") for model in pair)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities(pair: tuple[Any, Any], name: str) -> None:
    original, own = pair
    before, vectors = own.similarity_fn_name, original.encode(TEXTS)
    assert before == original.similarity_fn_name
    try:
        original.similarity_fn_name = own.similarity_fn_name = name
        for first, second in ((vectors, vectors[:2]), (vectors[0], vectors), (list(vectors), vectors)):
            np.testing.assert_allclose(own.similarity(first, second), original.similarity(first, second).numpy(), atol=2e-5, rtol=1e-4)
        for first, second in ((vectors, vectors[::-1].copy()), (vectors[0], vectors[1])):
            wanted = original.similarity_pairwise(first, second).numpy()
            np.testing.assert_allclose(own.similarity_pairwise(first, second), wanted, atol=2e-5, rtol=1e-4)
        tensors = torch.from_numpy(vectors)
        torch.testing.assert_close(own.similarity(tensors, tensors), original.similarity(tensors, tensors), atol=2e-3, rtol=1e-3)
    finally:
        original.similarity_fn_name = own.similarity_fn_name = before


def test_attributes(pair: tuple[Any, Any]) -> None:
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length"):
        assert getattr(pair[1], name) == getattr(pair[0], name), name
    assert pair[1].get_embedding_dimension() == pair[0].get_embedding_dimension() == pair[1].get_sentence_embedding_dimension()
    try:
        pair[0].max_seq_length = pair[1].max_seq_length = 9
        np.testing.assert_allclose(pair[1].encode(TEXTS), pair[0].encode(TEXTS), **CLOSE)
        with pair[0].truncate_embeddings(5), pair[1].truncate_embeddings(5):
            np.testing.assert_allclose(pair[1].encode(TEXTS), pair[0].encode(TEXTS), **CLOSE)
    finally:
        pair[0].max_seq_length = pair[1].max_seq_length = 32


@pytest.mark.parametrize(
    "options",
    [{}, {"apply_softmax": True}, {"activation_fn": torch.nn.Tanh()}, {"prompt": "note: "}, {"batch_size": 2, "convert_to_numpy": True}],
    ids=["defaults", "softmax", "tanh", "prompt", "small batches"],
)
@pytest.mark.parametrize("inputs", [PAIRS, PAIRS[0], list(PAIRS[1]), [list(one) for one in PAIRS], []], ids=FORMS)
def test_predict(cross: tuple[Any, Any], inputs: Any, options: dict[str, Any]) -> None:
    expected, found = (model.predict(inputs, **options) for model in cross)
    assert np.asarray(found).dtype == np.asarray(expected).dtype and np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=1e-4)


def test_a_cross_encoder_follows_its_options(cross: tuple[Any, Any]) -> None:
    original, own = cross
    assert own.num_labels == original.num_labels and own.max_seq_length == original.max_seq_length
    expected, found = (model.predict(PAIRS, convert_to_tensor=True) for model in cross)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    try:
        original.max_seq_length = own.max_seq_length = 15
        np.testing.assert_allclose(own.predict(PAIRS), original.predict(PAIRS), atol=5e-5, rtol=1e-4)
    finally:
        original.max_seq_length = own.max_seq_length = 48


def test_rank(cross: tuple[Any, Any]) -> None:
    original, own = cross
    documents = [second for _, second in PAIRS]
    if own.num_labels > 1:
        with pytest.raises(ValueError, match="predict"):
            own.rank("the cat", documents)
        return
    expected, found = (model.rank("the cat", documents, top_k=3, return_documents=True) for model in cross)
    assert [one["text"] for one in found] == [documents[one["corpus_id"]] for one in found]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=5e-5, rtol=1e-4)
    assert [set(one) for one in found] == [set(one) for one in expected]


def test_a_folder_of_the_original_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="onnxport export"):
        ours.SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
