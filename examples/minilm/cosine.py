"""Cosine of each variant's vectors to the original's: python cosine.py --model build/minilm --bundle artifacts/minilm --data test.csv

--data: a csv with a column `text`. The original is the folder's model in PyTorch with mean pooling over real tokens and length 1.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from onnxport.runtime import load


def original(folder: Path, texts: list[str]) -> np.ndarray:
    """Vectors float32 [texts, hidden] of length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            vectors.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return np.asarray(torch.nn.functional.normalize(torch.cat(vectors), dim=1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    arguments = parser.parse_args()
    with arguments.data.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][: arguments.limit]
    expected = original(arguments.model, texts)
    for precision in json.loads((arguments.bundle / "bundle.json").read_text())["variants"]:
        with load(arguments.bundle, precision) as model:
            cosine = (model.encode(texts) * expected).sum(1)
        print(f"{precision} cosine of {len(texts)} texts: mean {cosine.mean():.6f}, least {cosine.min():.6f}", flush=True)


if __name__ == "__main__":
    main()
