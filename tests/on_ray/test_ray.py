"""Bundles on a cluster of two nodes of Ray, one of which is killed in the middle: `make test-ray`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from onnxport.errors import DataError
from onnxport.integrations.ray import Answer, Classify, Encode, Entities, Fill, Generate, application
from onnxport.runtime import load
from support import tiny_bundles, tiny_encoder

ROWS = 240
PIECES = len(tiny_encoder.PIECES)
WORDS = [f"w{4 + i % 30} w{5 + i % 7}" for i in range(ROWS)]


class Slow(Generate):
    """It takes a while, and tells its node and threads."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(0.4)
        found = super().__call__(batch)
        rows = len(found["output"])
        node = ray.get_runtime_context().get_node_id()
        return {**found, "node": np.array([node] * rows), "threads": np.full(rows, self._model.threads)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "translator": tiny_bundles.write_bundle(root / "translator", tiny_bundles.TinyModel("seq2seq")),
        "vectors": tiny_encoder.write(root / "vectors", "embedding", tiny_encoder.table(8), pooling="mean"),
        "labels": tiny_encoder.write(root / "labels", "classification", tiny_encoder.table(3), labels=["good", "bad", "plain"]),
        "names": tiny_encoder.write(root / "names", "token-classification", tiny_encoder.table(3), labels=["O", "B-PER", "I-PER"]),
        "masks": tiny_encoder.write(root / "masks", "fill-mask", tiny_encoder.table(PIECES), mask_id=tiny_encoder.PIECES.index("?")),
        "reader": tiny_encoder.write(root / "reader", "question-answering", tiny_encoder.table(2)),
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with two CPUs; the worker processes find the tests' own modules."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    memory = 100 << 20
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": memory, "include_dashboard": False})
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield found
    ray.shutdown()
    found.shutdown()


def test_every_row_comes_once_and_in_order_though_a_node_is_killed(cluster: Cluster, bundles: dict[str, Path]) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    with load(bundles["translator"], threads=1) as model:
        expected = [one.text for one in model.generate(WORDS, max_new_tokens=6)]
    rows = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(WORDS)], override_num_blocks=24)
    options = {"fn_constructor_kwargs": {"max_new_tokens": 6}, "concurrency": 2, "num_cpus": 1, "batch_size": 10}
    answers = rows.map_batches(Slow, fn_constructor_args=(bundles["translator"],), scheduling_strategy="SPREAD", **options)
    found: list[dict[str, Any]] = []
    killed = False
    for row in answers.iter_rows():
        found.append(row)
        if not killed and len(found) >= 40 and len({one["node"] for one in found}) > 1:
            cluster.remove_node(node, allow_graceful=False)
            killed = True
    assert killed, "both nodes answered before the end"
    assert [row["id"] for row in found] == list(range(ROWS))
    assert [row["output"] for row in found] == expected
    assert {row["threads"] for row in found} == {1}


def test_columns_of_other_tasks(cluster: Cluster, bundles: dict[str, Path]) -> None:
    texts = ["a b?", "c?", "d? e f"]
    rows = ray.data.from_items([{"line": text, "question": "a", "context": text} for text in texts], override_num_blocks=1)

    def answered(kind: type, bundle: str, **options: Any) -> list[Any]:
        mapped = rows.map_batches(
            kind, fn_constructor_args=(str(bundles[bundle]),), fn_constructor_kwargs=options, concurrency=1, num_cpus=2, batch_size=2
        )
        return [row[options.get("output", "output")] for row in mapped.take_all()]

    with load(bundles["vectors"]) as model:
        found = answered(Encode, "vectors", column="line", output="vector", normalize_embeddings=True)
        np.testing.assert_allclose(np.stack(found), model.encode(texts, normalize_embeddings=True), rtol=1e-6)
    with load(bundles["labels"]) as model:
        for one, wanted in zip(answered(Classify, "labels", column="line"), model.classify(texts), strict=True):
            assert one["label"] == wanted.label and one["scores"] == pytest.approx(wanted.scores)
    with load(bundles["names"]) as model:
        wanted_entities = [[asdict(one) for one in found] for found in model.entities(texts, aggregation="simple")]
        assert any(wanted_entities) and answered(Entities, "names", column="line", aggregation="simple") == wanted_entities
    with load(bundles["masks"]) as model:
        wanted_fills = [[asdict(one) for one in found] for found in model.fill(texts, top_k=2)]
        assert answered(Fill, "masks", column="line", top_k=2) == wanted_fills
    with load(bundles["reader"]) as model:
        wanted_answers = model.answer(question=["a"] * 3, context=texts)
        assert [one["answer"] for one in answered(Answer, "reader")] == [one.answer for one in wanted_answers]


def test_a_missing_column_is_named(cluster: Cluster, bundles: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="has the columns line, expected text; name it with column="):
        Encode(bundles["vectors"], threads=1)({"line": np.array(["a"])})


def test_the_server_answers_on_ray_serve(cluster: Cluster, bundles: dict[str, Path]) -> None:
    found = application([f"vectors={bundles['vectors']}"], ray_actor_options={"num_cpus": 1})
    serve.start(http_options={"port": 18123})
    try:
        serve.run(found, name="onnxport", route_prefix="/")
        reply = httpx.post("http://127.0.0.1:18123/v1/embeddings", json={"model": "vectors", "input": ["a b", "c"]}, timeout=60)
        with load(bundles["vectors"]) as model:
            np.testing.assert_allclose([one["embedding"] for one in reply.json()["data"]], model.encode(["a b", "c"]), rtol=1e-6)
        refused = httpx.post("http://127.0.0.1:18123/v1/embeddings", json={"model": "other", "input": "a"}, timeout=60)
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    finally:
        serve.shutdown()
