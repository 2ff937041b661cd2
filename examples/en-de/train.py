"""Trains the shipped English-to-German model: `python train.py --data FOLDER --work FOLDER`.

FOLDER of --data holds `train.tsv.gz`, `dev.tsv` and `test.tsv`, one `english<TAB>german` pair a line. Training state goes to --work
after every 200 steps; the same command goes on where it was stopped. The finished model is written beside this script.
With glibc, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000` in the environment saves a third of the time:
big tensors then cause no page faults.
The learning rate warms up, stays, and falls linearly to zero over the last part, so --epochs may still be changed before the fall.
"""

import argparse
import gzip
import json
import random
import time
from pathlib import Path

import sacrebleu
import torch
from model import FOLDER, TranslationModel, greedy
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

PAD, BOS, EOS, UNK = range(4)
CONFIG = {
    "architecture": "torch.nn.Transformer",
    "d_model": 256,
    "nhead": 4,
    "num_encoder_layers": 3,
    "num_decoder_layers": 3,
    "dim_feedforward": 1024,
    "activation": "relu",
    "norm_first": True,
    "layer_norm_eps": 1e-5,
    "bias": True,
    "source_vocab_size": 8000,
    "target_vocab_size": 8000,
    "positions": "sinusoidal",
    "embedding_scale": 16.0,
    "tie_embeddings": True,
    "max_length": 256,
    "pad_id": PAD,
    "bos_id": BOS,
    "eos_id": EOS,
    "task": "translation",
}
Pair = tuple[list[int], list[int]]


def read(path: Path) -> list[tuple[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [tuple(line.rstrip("\n").split("\t")[:2]) for line in lines]


def train_tokenizer(pairs: list[tuple[str, str]], size: int) -> Tokenizer:
    """One BPE for both languages; encoding appends the end token, as the encoder wants it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return tokenizer


def batches(pairs: list[Pair], tokens: int, seed: int) -> list[list[Pair]]:
    """Pairs of like length together, at most `tokens` padded source plus target tokens on the longer side."""
    rng = random.Random(seed)
    order = sorted(pairs, key=lambda pair: (len(pair[1]) + rng.random(), len(pair[0]) + rng.random()))
    result, current, width = [], [], 0
    for pair in order:
        width = max(width, len(pair[0]), len(pair[1]))
        if current and width * (len(current) + 1) > tokens:
            result.append(current)
            current, width = [], max(len(pair[0]), len(pair[1]))
        current.append(pair)
    result.append(current)
    rng.shuffle(result)
    return result


def pad(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def bleu(model: TranslationModel, tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> float:
    """sacreBLEU (13a) of greedy translations; each pair with its own single reference."""
    model.eval()
    sources = [tokenizer.encode(source).ids for source, _ in pairs]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    outputs = [""] * len(sources)
    for start in range(0, len(order), 100):
        chosen = order[start : start + 100]
        rows = greedy(model, pad([sources[i] for i in chosen]), 2 * len(sources[chosen[-1]]) + 10)
        for i, row in zip(chosen, rows, strict=True):
            outputs[i] = tokenizer.decode(row)
    return sacrebleu.corpus_bleu(outputs, [[target for _, target in pairs]]).score


def rate(step: int, total: int, peak: float, warm_up: int, fall: float) -> float:
    if step < warm_up:
        return peak * (step + 1) / warm_up
    left = (total - step) / (total * fall)
    return peak * min(1.0, max(left, 0.0))


def train(options: argparse.Namespace, tokenizer: Tokenizer, data: list[Pair], dev: list[tuple[str, str]]) -> TranslationModel:
    torch.manual_seed(0)
    model = TranslationModel(CONFIG)
    for layer in [*model.transformer.encoder.layers, *model.transformer.decoder.layers]:
        layer.dropout.p = layer.self_attn.dropout = (
            0.0  # drawing wide masks costs a fifth of a step on a CPU; the residual paths keep theirs
        )
    for weight in model.transformer.parameters():
        if weight.dim() > 1:
            nn.init.xavier_uniform_(weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.1)
    steps_an_epoch = len(batches(data, options.tokens, 0))
    total, step, state = options.epochs * steps_an_epoch, 0, options.work / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    print(f"{steps_an_epoch} steps an epoch, {total} in all, going on from {step}", flush=True)
    began, seen, running = time.time(), 0, 0.0
    while step < total:
        epoch, offset = divmod(step, steps_an_epoch)
        chosen = batches(data, options.tokens, epoch)
        # Epochs differ by a few batches; each takes as many as the first, so that a step's place follows from its number.
        for batch in [*chosen, *chosen][offset:steps_an_epoch]:
            model.train()
            source, target = pad([pair[0] for pair in batch]), pad([[BOS, *pair[1]] for pair in batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                logits = model(source, target[:, :-1])
            loss = criterion(logits.flatten(0, 1).float(), target[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate(step, total, options.peak, options.warm_up, options.fall)
            optimizer.step()
            optimizer.zero_grad()
            step, seen, running = step + 1, seen + 1, running + loss.item()
            if seen % 50 == 0:
                print(f"step {step} loss {running / 50:.3f} {(time.time() - began) / seen:.2f} s a step", flush=True)
                running = 0.0
            if step % 200 == 0 or step == total:
                saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(saved, state.with_suffix(".new"))
                state.with_suffix(".new").replace(state)
        print(f"epoch {epoch + 1}: BLEU {bleu(model, tokenizer, dev[:500]):.2f} on the first 500 of dev", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--peak", type=float, default=1.1e-3)
    parser.add_argument("--warm-up", type=int, default=700)
    parser.add_argument("--fall", type=float, default=0.48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)

    pairs, dev, test = (read(options.data / name) for name in ("train.tsv.gz", "dev.tsv", "test.tsv"))
    if not (options.work / "tokenizer.json").exists():
        train_tokenizer(pairs, CONFIG["source_vocab_size"]).save(str(options.work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    sources = tokenizer.encode_batch([source for source, _ in pairs])
    targets = tokenizer.encode_batch([target for _, target in pairs])
    data = [(s.ids, t.ids) for s, t in zip(sources, targets, strict=True)]
    model = train(options, tokenizer, data, dev)

    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    weights["source_embedding.weight"] = weights.pop("embedding.weight")
    save_file(weights, options.out / "model.safetensors")
    (options.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(options.out / "tokenizer.json"))
    print(f"BLEU {bleu(model, tokenizer, test):.2f} on test.tsv, greedy, weights rounded to fp16", flush=True)


if __name__ == "__main__":
    main()
