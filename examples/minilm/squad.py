"""Fine-tunes MiniLM to find answers in paragraphs: python squad.py --model build/minilm --data train-v1.1.json.gz --out build/squad

--data: SQuAD v1.1's JSON, gzipped or not (Rajpurkar et al. 2016, CC BY-SA 4.0). Contexts longer than --length tokens become windows.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertForQuestionAnswering

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import batches, train

Row = tuple[list[int], list[int], int, int]  # ids, token types, first and last token of the answer


def read(path: Path) -> list[tuple[str, str, int, int]]:
    """(question, context, first character, character behind the last one)."""
    raw = path.read_bytes()
    data = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["data"]
    return [
        (question["question"], paragraph["context"], answer["answer_start"], answer["answer_start"] + len(answer["text"]))
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        for answer in question["answers"][:1]
    ]


def windows(tokenizer: AutoTokenizer, rows: list[tuple[str, str, int, int]], length: int) -> list[Row]:
    """The windows that hold an answer whole."""
    found = tokenizer(
        [row[0] for row in rows],
        [row[1] for row in rows],
        truncation="only_second",
        max_length=length,
        stride=length // 3,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    result = []
    for i, sample in enumerate(found["overflow_to_sample_mapping"]):
        _, _, start, end = rows[sample]
        places = [
            at
            for at, (offset, part) in enumerate(zip(found["offset_mapping"][i], found.sequence_ids(i), strict=True))
            if part == 1 and offset[0] < end and offset[1] > start
        ]
        if places and found["offset_mapping"][i][places[0]][0] <= start and found["offset_mapping"][i][places[-1]][1] >= end:
            result.append((found["input_ids"][i], found["token_type_ids"][i], places[0], places[-1]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch, padding counted")
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.model_max_length = 512
    model = BertForQuestionAnswering.from_pretrained(arguments.model)
    rows = windows(tokenizer, read(arguments.data), arguments.length)

    def loss_of(chosen: list[int]) -> Tensor:
        batch = tokenizer.pad(
            {"input_ids": [rows[i][0] for i in chosen], "token_type_ids": [rows[i][1] for i in chosen]}, return_tensors="pt"
        )
        first, last = (torch.tensor([rows[i][part] for i in chosen]) for part in (2, 3))
        loss: Tensor = model(**batch, start_positions=first, end_positions=last).loss
        return loss

    order = batches([len(row[0]) for row in rows], arguments.tokens, 1)
    train(model, loss_of, order, arguments.steps, 2e-4, arguments.out / "training")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
