"""Models of real size for the benchmarks, as folders that every peer reads (transformers' save_pretrained and Marian's tokenizer files).

    python benchmarks/models.py random train.tsv.gz --out build/models/random
    python benchmarks/models.py grown build/marian-small --out build/models/grown

Both are Marian-base: 6+6 layers, d 512, ff 2048, 8 heads, 32,000 entries. `random` is for speed alone; `grown` is a small trained model
(train_narrow.py) with the same answers at full size, so that lengths and BLEU are those of real translations. Other shapes: shapes.py.
"""

import gzip
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import click
import sentencepiece
import torch
from narrow import Reads, Writes, base_config, load_narrow
from shapes import COMMANDS
from torch import nn
from transformers import GenerationConfig, MarianMTModel

VOCABULARY, LAYERS = 32_000, 6
NEVER = -50.0  # the logit bias of entries that no text uses; a huge one would hide differences of the others in relative errors


def read_pairs(path: Path) -> list[list[str]]:
    """[source, target] a row of a .tsv, gzipped or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    return [line.split("\t")[:2] for line in text.splitlines()]


def make_tokenizer(texts: Iterable[str], out: Path, size: int) -> None:
    """Marian's files, one SentencePiece model for both sides: ids 0 </s>, 1 <unk>, the pieces, and padding last; `size` ids in all."""
    model = io.BytesIO()
    options = {"vocab_size": size, "minloglevel": 2, "character_coverage": 1.0, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(len(processor)) if not processor.is_control(i) and not processor.is_unknown(i)]
    out.mkdir(parents=True, exist_ok=True)
    for side in ("source", "target"):
        (out / f"{side}.spm").write_bytes(model.getvalue())
    write_vocabulary(out, ["</s>", "<unk>", *pieces, "<pad>"])


def write_vocabulary(out: Path, pieces: list[str]) -> None:
    """vocab.json and tokenizer_config.json."""
    (out / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de", "model_max_length": 512}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))


def save(model: MarianMTModel, out: Path) -> None:
    """config.json, generation_config.json (padding is never an answer, as in Marian's published folders) and model.safetensors."""
    config, pad = model.config, model.config.pad_token_id
    model.generation_config = GenerationConfig(
        bad_words_ids=[[pad]],
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        bos_token_id=0,
        max_length=config.max_position_embeddings,
    )
    model.eval().save_pretrained(out)


@torch.no_grad()
def random_model(seed: int, gain: float) -> MarianMTModel:
    """transformers' own initial weights; feed-forward, queries and keys times `gain`, or every answer would repeat its first token."""
    torch.manual_seed(seed)
    model = MarianMTModel(base_config(VOCABULARY, LAYERS))
    for name, module in model.model.named_modules():
        if name.endswith(("fc1", "fc2", "q_proj", "k_proj")):
            module.weight.mul_(gain)
    model.get_input_embeddings().weight[model.config.pad_token_id] = 0
    return model


@torch.no_grad()
def grow(small: MarianMTModel, noise: float = 0.001, added: float = 0.001) -> MarianMTModel:
    """The narrow model written out: every layer followed by one that adds next to nothing, unused entries that never win.

    noise: of the copied weights, as a share of their standard deviation.  added: the gain of the added layers' last projections.
    """
    torch.manual_seed(7)
    wide = random_model(7, 4.0)
    used = small.config.vocab_size - 1  # without padding, which moves to the end
    table, rows = wide.get_input_embeddings().weight, small.get_input_embeddings()
    table.normal_(std=float(rows.weight.std()))
    table[:used] = rows.unfold()[:used]
    table[-1] = 0
    wide.final_logits_bias[0, used:-1] = NEVER
    for name, module in wide.model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        side, _, number, place = name.split(".", 3)
        if int(number) % 2:
            module.weight.mul_(added if place.endswith(("out_proj", "fc2")) else 1)
            continue
        part = small.model.get_submodule(f"{side}.layers.{int(number) // 2}.{place}")
        assert isinstance(part, Reads | Writes)
        weight, bias = part.unfold()
        module.weight.copy_(weight + torch.randn_like(weight) * noise * weight.std())
        module.bias.copy_(bias)
    return wide


@click.group(help=__doc__)
def main() -> None: ...


for command in COMMANDS:
    main.add_command(command)


@main.command()
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--gain", type=float, default=4.0, show_default=True)
def random(texts: Path, out: Path, seed: int, gain: float) -> None:
    """Random weights, and a tokenizer trained on the TEXTS, a .tsv of pairs."""
    make_tokenizer((text for pair in read_pairs(texts) for text in pair), out, VOCABULARY)
    save(random_model(seed, gain), out)


@main.command()
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--check", type=click.Path(exists=True, path_type=Path), help="A .tsv: compare greedy answers of both models, print BLEU.")
@click.option("--limit", type=int, default=200, show_default=True, help="Rows of it, evenly spaced.")
def grown(trained: Path, out: Path, check: Path | None, limit: int) -> None:
    """The model that train_narrow.py made, at full size."""
    small = load_narrow(trained)
    wide = grow(small)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("source.spm", "target.spm"):
        shutil.copyfile(trained / name, out / name)
    pieces = list(json.loads((trained / "vocab.json").read_text(encoding="utf-8")))[:-1]
    write_vocabulary(out, [*pieces, *(f"<unused_{i}>" for i in range(len(pieces), VOCABULARY - 1)), "<pad>"])
    save(wide, out)
    if check is not None:
        compare(small, wide, out, check, limit)


def compare(small: MarianMTModel, wide: MarianMTModel, folder: Path, data: Path, limit: int) -> None:
    """Prints how many greedy answers of the two models are equal, and the BLEU of either."""
    from transformers import MarianTokenizer, logging

    from onnxport.compare.data import read_data
    from onnxport.compare.metrics import translation

    logging.set_verbosity_error()
    tokenizer, rows = MarianTokenizer.from_pretrained(folder), read_data(data).grouped().limited(limit)
    answers: list[list[str]] = [[], []]
    for text in rows.inputs:
        ids = torch.tensor([tokenizer(text).input_ids])
        for model, texts in zip((small, wide), answers, strict=True):
            found = model.eval().generate(ids, do_sample=False, num_beams=1, max_new_tokens=64, bad_words_ids=[[model.config.pad_token_id]])
            texts.append(tokenizer.decode(found[0][1:], skip_special_tokens=True))
    same = sum(one == other for one, other in zip(*answers, strict=True))
    bleu = [translation(texts, rows.references or [])["bleu"] for texts in answers]
    click.echo(f"{same} of {len(rows)} greedy answers are equal; BLEU {bleu[0]:.2f} small, {bleu[1]:.2f} grown")


if __name__ == "__main__":
    main()
