"""Fine-tunes MiniLM to the 77 intents of banking77: python banking77.py --model build/minilm --data FOLDER --out build/banking77

FOLDER holds train.csv and test.csv (text,category): PolyAI's task-specific-datasets, CC BY 4.0 (Casanueva et al. 2020,
"Efficient Intent Detection with Dual Sentence Encoders").
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import batches, train


def read(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--tokens", type=int, default=768, help="of a batch, padding counted")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows, test = (read(arguments.data / f"{name}.csv") for name in ("train", "test"))
    labels = sorted({label for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = BertForSequenceClassification.from_pretrained(
        arguments.model, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    )
    ids = tokenizer([text for text, _ in rows], truncation=True, max_length=128)["input_ids"]
    wanted = torch.tensor([labels.index(label) for _, label in rows])

    def loss_of(chosen: list[int]) -> Tensor:
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
        loss: Tensor = model(**batch, labels=wanted[chosen]).loss
        return loss

    train(model, loss_of, batches([len(one) for one in ids], arguments.tokens, 1), arguments.steps, 3e-4, arguments.out / "training")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    right = 0
    with torch.inference_mode():
        for start in range(0, len(test), 64):
            texts, expected = zip(*test[start : start + 64], strict=True)
            logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
            right += sum(labels[i] == label for i, label in zip(logits.argmax(-1).tolist(), expected, strict=True))
    print(f"accuracy {right / len(test):.4f} on {len(test)} texts of test.csv")


if __name__ == "__main__":
    main()
