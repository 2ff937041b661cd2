"""Quality of every variant of a bundle on real data, without torch: python evaluate.py BUNDLE DATA [--limit N]

By the bundle's task: embedding: retrieval on SQuAD's JSON; classification: accuracy on a csv of text,category; question-answering: exact
match and F1 on SQuAD's JSON; text-generation: perplexity on lines of text; others: chrF on json lines of abstract and title. A .gz too.
"""

import argparse
import csv
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from onnxport.compare.metrics import quality
from onnxport.runtime import Model, load
from onnxport.runtime.running import Running

WINDOW = 256  # tokens whose perplexity is measured together


def squad(text: str, limit: int | None) -> list[tuple[str, str, list[str]]]:
    """(question, context, accepted answers), `limit` of them evenly spaced."""
    paragraphs = [p for article in json.loads(text)["data"] for p in article["paragraphs"]]
    return spaced([(q["question"], p["context"], [a["text"] for a in q["answers"]]) for p in paragraphs for q in p["qas"]], limit)


def spaced(rows: list[Any], limit: int | None) -> list[Any]:
    return rows[:: max(1, len(rows) // limit)][:limit] if limit else rows


def retrieval(model: Model, text: str, limit: int | None) -> dict[str, float]:
    """Whether the paragraph of a question is the nearest of all paragraphs, or among ten."""
    contexts = list(dict.fromkeys(row[1] for row in squad(text, None)))
    rows = squad(text, limit)
    scores = model.encode([row[0] for row in rows]) @ model.encode(contexts).T
    right = scores[np.arange(len(rows)), [contexts.index(row[1]) for row in rows]]
    rank = (scores > right[:, None]).sum(1)
    return {"rows": len(rows), "recall@1": float((rank < 1).mean()), "recall@10": float((rank < 10).mean())}


def accuracy(model: Model, text: str, limit: int | None) -> dict[str, float]:
    rows = spaced([(row["text"], row["category"]) for row in csv.DictReader(text.splitlines())], limit)
    found = model.classify([row[0] for row in rows])
    return {"rows": len(rows), "accuracy": sum(f.label == row[1] for f, row in zip(found, rows, strict=True)) / len(rows)}


def answers(model: Model, text: str, limit: int | None) -> dict[str, float]:
    rows = squad(text, limit)
    found = model.answer(question=[row[0] for row in rows], context=[row[1] for row in rows])
    return {"rows": len(rows), **quality("questions", [{"answer": f.answer} for f in found], [row[2] for row in rows])}


def perplexity(model: Model, text: str, limit: int | None) -> dict[str, float]:
    """Of windows of the text's ids, each token given those before it in its window, through the cache as in generation."""
    engine = model.engine
    assert engine is not None and engine.config.eos_ids
    ids = np.array([i for line in text.splitlines() if line.strip() for i in (*model.tokenize(line.strip()), engine.config.eos_ids[0])])
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)[:limit]
    losses = []
    for rows in np.array_split(windows, max(1, len(windows) // 16)):
        running = Running(engine, None, rows[:, :1].tolist(), WINDOW)
        running.prefill()
        for t in range(1, WINDOW):
            logits = running.logits.numpy().astype(np.float64)
            top = logits.max(1)
            losses.append(np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(rows)), rows[:, t]])
            running.ids[:, 0] = rows[:, t]
            running.step()
    return {"rows": len(windows), "perplexity": float(np.exp(np.concatenate(losses).mean()))}


def titles(model: Model, text: str, limit: int | None) -> dict[str, float]:
    rows = spaced([json.loads(line) for line in text.splitlines()], limit)
    found = model.generate([row["abstract"] for row in rows], max_new_tokens=40, long="segments")
    return {"rows": len(rows), "chrf": sacrebleu.corpus_chrf([f.text for f in found], [[row["title"] for row in rows]]).score}


TASKS: dict[str, Callable[[Model, str, int | None], dict[str, float]]] = {
    "embedding": retrieval,
    "classification": accuracy,
    "question-answering": answers,
    "text-generation": perplexity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    raw = arguments.data.read_bytes()
    text = (gzip.decompress(raw) if arguments.data.suffix == ".gz" else raw).decode()
    for precision in json.loads((arguments.bundle / "bundle.json").read_text())["variants"]:
        with load(arguments.bundle, precision) as model:
            start = time.perf_counter()
            result = TASKS.get(model.task, titles)(model, text, arguments.limit)
            print(precision, *(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()), end="")
            print(f" in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
