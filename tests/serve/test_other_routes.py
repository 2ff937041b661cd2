"""Rankings, and every task that reads text, over HTTP: what the runtime's methods give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from onnxport.runtime import Model
from support.serving import Running

Find = Callable[[str], Model]


def test_documents_are_ranked(server: Running, model: Find) -> None:
    documents = ["a b", "c", "d e f"]
    expected = [asdict(one) for one in model("ranker").rerank("q", documents)]
    body = {"model": "ranker", "query": "q", "documents": ["a b", {"text": "c"}, "d e f"], "top_n": 2, "return_documents": True}
    found = server.post("/v1/rerank", body).json()
    assert [one["index"] for one in found["results"]] == [one["index"] for one in expected[:2]]
    np.testing.assert_allclose([one["relevance_score"] for one in found["results"]], [one["score"] for one in expected[:2]], rtol=1e-5)
    assert found["results"][0]["document"] == {"text": documents[expected[0]["index"]]} and found["usage"]["total_tokens"] > 0


def test_run_answers_every_task(server: Running, model: Find) -> None:
    def run(**body: Any) -> list[Any]:
        answer = server.post("/v1/run", body)
        assert answer.status_code == 200, answer.text
        results: list[Any] = answer.json()["results"]
        return results

    (label,) = run(model="labels", inputs="a b")
    assert label["label"] == model("labels").classify("a b")[0].label and set(label["scores"]) == {"good", "bad", "plain"}
    (pair,) = run(model="labels", inputs={"text": "a", "pair": "b"})
    assert pair["label"] == model("labels").classify(("a", "b"))[0].label
    (span,) = run(model="reader", inputs=[{"question": "a b", "context": "c d e"}], max_answer_tokens=2)
    assert span["answer"] == model("reader").answer(question="a b", context="c d e", max_answer_tokens=2)[0].answer
    (vector,) = run(model="vectors", inputs=["a b"], truncate_dim=2)
    np.testing.assert_allclose(vector["embedding"], model("vectors").encode("a b", truncate_dim=2)[0], atol=1e-6)
    (text,) = run(model="translator", inputs=["w5 w9"], beam=2, n_best=2, max_new_tokens=5)
    expected = model("translator").generate("w5 w9", beam=2, n_best=2, max_new_tokens=5)[0]
    assert (text["text"], text["tokens"]) == (expected.text, expected.tokens)
    assert [one["tokens"] for one in text["alternatives"]] == [one.tokens for one in expected.alternatives]


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/v1/run", {"model": "labels", "inputs": []}, "inputs is empty"),
        ("/v1/run", {"model": "labels", "inputs": [3]}, "inputs[0] is a whole number, expected a text or"),
        ("/v1/run", {"model": "reader", "inputs": ["a"]}, 'expected {"question": ..., "context": ...}'),
        ("/v1/run", {"model": "labels", "inputs": "a", "beam": 3}, "'beam', which is unknown here"),
        ("/v1/run", {"model": "labels"}, "the body has no 'inputs'"),
        ("/v1/run", {"inputs": "a"}, "the body has no 'model'"),
        ("/v1/run", {"model": "labels", "inputs": "\ud800"}, "surrogate"),
        ("/v1/rerank", {"model": "labels", "query": "a", "documents": ["b"]}, "gives 3 scores"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": [4]}, "documents[0] is a whole number"),
    ],
)
def test_bad_requests_are_told(path: str, body: dict[str, Any], part: str, server: Running) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400 and part in answer.json()["error"]["message"]
