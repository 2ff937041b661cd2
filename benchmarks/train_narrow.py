"""Trains a small translation model to be grown to Marian-base size (narrow.py, models.py); run again, it goes on from its checkpoint.

    python benchmarks/train_narrow.py train.tsv.gz --out build/marian-small --steps 2500

Writes source.spm, target.spm, vocab.json and checkpoint.pt. Needs torch, transformers and sentencepiece; about an hour on one core.
"""

import json
import random
import time
from pathlib import Path

import click
import sentencepiece
import torch
from models import make_tokenizer, read_pairs
from narrow import clear_padding, narrow
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Pair = tuple[list[int], list[int]]


def encode(pairs: list[list[str]], folder: Path) -> list[Pair]:
    """Ids of both sides, each ended by </s>."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))

    def ids(texts: list[str]) -> list[list[int]]:
        return [[vocabulary.get(piece, 1) for piece in pieces] + [0] for pieces in processor.encode(texts, out_type=str)]

    return list(zip(ids([pair[0] for pair in pairs]), ids([pair[1] for pair in pairs]), strict=True))


def epoch(pairs: list[Pair], tokens: int, seed: int) -> list[list[Pair]]:
    """Batches of pairs of like lengths, at most `tokens` padded target positions each, in random order."""
    chooser = random.Random(seed)
    ordered = sorted(pairs, key=lambda pair: (max(map(len, pair)), chooser.random()))
    batches: list[list[Pair]] = [[]]
    for pair in ordered:
        if (len(batches[-1]) + 1) * max(map(len, pair)) > tokens:
            batches.append([])
        batches[-1].append(pair)
    chooser.shuffle(batches)
    return batches


def loss_of(model: nn.Module, batch: list[Pair]) -> Tensor:
    """Label-smoothed cross entropy of a batch; padding is not counted, and no logits are made for it."""
    pad = model.config.pad_token_id
    source = pad_sequence([torch.tensor(pair[0]) for pair in batch], True, pad)
    target = pad_sequence([torch.tensor(pair[1]) for pair in batch], True, pad)
    decoder_ids = torch.cat([target.new_full((len(batch), 1), pad), target[:, :-1]], 1)
    hidden = model.model(input_ids=source, attention_mask=(source != pad).long(), decoder_input_ids=decoder_ids, use_cache=False)[0]
    real = target != pad
    return F.cross_entropy(model.lm_head(hidden[real]), target[real], label_smoothing=0.1)


def warmth(done: float) -> float:
    """The share of the highest learning rate when `done` of the training is done: linear up over the first eighth, then linear down."""
    return min(done * 8, (1 - done) * 8 / 7)


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", type=int, default=2500, show_default=True)
@click.option("--tokens", type=int, default=3000, show_default=True, help="Padded positions a side in a batch.")
@click.option("--vocabulary", type=int, default=8000, show_default=True)
@click.option("--rate", type=float, default=3e-3, show_default=True, help="Highest learning rate.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--bf16", is_flag=True, help="bfloat16 autocast, on processors that gain by it.")
def main(data: Path, out: Path, steps: int, tokens: int, vocabulary: int, rate: float, threads: int, bf16: bool) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    out.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(data)
    if not (out / "vocab.json").exists():
        make_tokenizer((text for pair in pairs for text in pair), out, vocabulary)
    encoded = [pair for pair in encode(pairs, out) if max(map(len, pair)) <= 100]
    model = narrow(len(json.loads((out / "vocab.json").read_text(encoding="utf-8")))).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint, step = out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    batches: list[list[Pair]] = []
    number, running, saved = 0, 0.0, time.monotonic()
    while step < steps:
        if not batches:
            batches, number = epoch(encoded, tokens, seed=number), number + 1
            # An epoch begun before a stop is begun anew: a few batches come twice.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model, batches.pop())
        for group in optimizer.param_groups:
            group["lr"] = rate * warmth((step + 1) / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        clear_padding(model)
        step, running = step + 1, 0.98 * running + 0.02 * loss.item() if running else loss.item()
        if step % 25 == 0:
            click.echo(f"{time.strftime('%H:%M:%S')} step {step} of {steps}, {len(batches)} left in epoch {number}, loss {running:.3f}")
        if step == steps or time.monotonic() - saved > 180:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(parts, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
