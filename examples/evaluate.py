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

import sacrebleu

from onnxport.compare.metrics import quality, values
from onnxport.compare.scores import of_retrieval
from onnxport.runtime import Model, load

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
    passage_of = [contexts.index(row[1]) for row in rows]
    found = of_retrieval(model.encode([row[0] for row in rows]), model.encode(contexts), passage_of)
    return {"rows": len(rows), **values(found)}


def accuracy(model: Model, text: str, limit: int | None) -> dict[str, float]:
    rows = spaced([(row["text"], row["category"]) for row in csv.DictReader(text.splitlines())], limit)
    found = model.classify([row[0] for row in rows])
    return {"rows": len(rows), "accuracy": sum(f.label == row[1] for f, row in zip(found, rows, strict=True)) / len(rows)}


def answers(model: Model, text: str, limit: int | None) -> dict[str, float]:
    rows = squad(text, limit)
    found = model.answer(question=[row[0] for row in rows], context=[row[1] for row in rows])
    return {"rows": len(rows), **quality("questions", [{"answer": f.answer} for f in found], [row[2] for row in rows])}


def perplexity(model: Model, text: str, limit: int | None) -> dict[str, float]:
    """Of windows of the text's ids, each token given those before it in its window."""
    assert model.engine is not None and model.engine.config.eos_ids
    end = model.engine.config.eos_ids[0]
    ids = [i for line in text.splitlines() if line.strip() for i in (*model.tokenize(line.strip()), end)]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)][:limit]
    return {"rows": len(windows), "perplexity": model.perplexity(windows)}


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
