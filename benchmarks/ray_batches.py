"""Sentences a second of a bundle: one process, the server, then Ray with one actor and with two on two nodes, one of which is killed in the
middle.

    python benchmarks/ray_batches.py artifacts/en-de --sentences 20000

It needs the extras `ray` and `serve`, and two cores. The server is asked in batches, one after the other, over HTTP. Both nodes are on this
machine (ray.cluster_utils): it shows recovery and overhead, not scaling.
It ends with exit code 1 where a row is missing, comes twice or out of order, or has another answer than the one process gave.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

os.environ.setdefault("RAY_worker_niceness", "0")  # before ray is imported; by default its workers yield to all else on the machine

import ray
from ray.cluster_utils import Cluster
from serve_load import serving

from onnxport.integrations.ray import Encode, Generate
from onnxport.runtime import load

MEMORY = 200 << 20  # bytes of a node's object store
HEADERS = {"Content-Type": "application/json"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "examples" / "en-de" / "test-200.tsv")
    parser.add_argument("--precision")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    lines = [line.split("\t")[0] for line in options.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [lines[i % len(lines)] for i in range(options.sentences)]
    path, figures = options.bundle.resolve(), []

    with load(path, precision=options.precision, threads=1) as model:
        generates = model.task not in ("embedding",)
        search = {"max_new_tokens": options.max_new_tokens} if generates else {}
        start, expected = time.perf_counter(), []
        for i in range(0, len(texts), options.batch):
            part = texts[i : i + options.batch]
            expected += [one.text for one in model.generate(part, **search)] if generates else model.encode(part).tolist()
        figures.append(figure("one process, 1 thread", texts, start))
    wrong = 0
    if generates:
        start, found = served(path, options, texts)
        figures.append(figure("the server, 1 thread, one client", texts, start))
        wrong += differences(enumerate(found), expected, generates)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": MEMORY, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    for name, actors in (("Ray, 1 actor of 1 CPU", 1), ("Ray, 2 actors of 1 CPU, one's node killed in the middle", 2)):
        node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY) if actors > 1 else None
        cluster.wait_for_nodes()
        blocks = max(1, len(texts) // options.batch)
        rows = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts)], override_num_blocks=blocks)
        answers = rows.map_batches(
            Generate if generates else Encode,
            fn_constructor_args=(path, options.precision),
            fn_constructor_kwargs=search,
            concurrency=actors,
            num_cpus=1,
            batch_size=options.batch,
            scheduling_strategy="SPREAD",
        )
        start, found = time.perf_counter(), []
        for row in answers.iter_rows():
            found.append((row["id"], row["output"] if generates else row["output"].tolist()))
            if node is not None and len(found) >= len(texts) // 2:
                cluster.remove_node(node, allow_graceful=False)
                node = None
        figures.append(figure(name, texts, start))
        wrong += differences(found, expected, generates)
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"sentences": len(texts), "rows_wrong": wrong, "figures": figures}, indent=2))
    return 1 if wrong else 0


def served(path: Path, options: argparse.Namespace, texts: list[str]) -> tuple[float, list[str]]:
    """When the first text was sent to a server in a process of its own, and its answers."""
    command = [sys.executable, "-m", "onnxport", "serve", f"it={path}", "--port", "0", "--threads", "1", "-q"]
    command += ["--precision", options.precision] if options.precision else []
    with serving(command, r"listening on http://127\.0\.0\.1:(\d+)") as (_, port):
        start, found = time.perf_counter(), []
        for i in range(0, len(texts), options.batch):
            request = {"model": "it", "prompt": texts[i : i + options.batch], "max_tokens": options.max_new_tokens, "temperature": 0}
            with urlopen(Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(request).encode(), HEADERS)) as answer:
                found += [choice["text"] for choice in json.load(answer)["choices"]]
        return start, found


def figure(name: str, texts: list[str], start: float) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    return {"what": name, "seconds": round(seconds, 2), "sentences_per_second": round(len(texts) / seconds, 1)}


def differences(found: Iterable[tuple[int, Any]], expected: list[Any], exact: bool) -> int:
    """Rows that are missing, too many, in another place, or of another answer; vectors may differ in their last digits."""
    rows = list(found)
    same = sum(
        i == place and (answer == wanted if exact else max(abs(a - b) for a, b in zip(answer, wanted, strict=True)) < 1e-5)
        for place, ((i, answer), wanted) in enumerate(zip(rows, expected, strict=False))
    )
    return max(len(rows), len(expected)) - same


if __name__ == "__main__":
    sys.exit(main())
