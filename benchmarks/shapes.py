"""Language models and encoders of real size with seeded random weights, as Hugging Face folders with a tokenizer: commands of models.py.

llama: 12 layers, d 768, 12 heads of which 4 have keys and values, ff 2048, 32,000 entries, tied: 91 million parameters. gpt2: GPT-2 small.
bert: BERT-base. The tokenizer is trained on the given text, so that real sentences have lengths as they would in an application.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

BOS, EOS = "<s>", "</s>"
LENGTHS = (3, 100)  # words of a sentence that is kept


def read_lines(path: Path) -> list[str]:
    """The lines of a text, gzipped or not, that are not empty."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def sentences(path: Path) -> Iterator[str]:
    """The sentences of running text: paragraphs end with an empty line, sentences with . ! or ? before a capital letter."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[\"'”’]*\s+(?=[\"'“‘A-Z])", " ".join(paragraph.split())):
            if LENGTHS[0] <= len(sentence.split()) <= LENGTHS[1]:
                yield sentence


def byte_level(texts: list[str], size: int) -> Tokenizer:
    """A byte-level BPE with `<s>` 0, `</s>` 1; entries that the texts do not fill are called <unused_N>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([f"<unused_{i}>" for i in range(tokenizer.get_vocab_size(), size)])
    return tokenizer


def word_pieces(texts: list[str], size: int) -> Tokenizer:
    """BERT's own: lower case, WordPiece, [CLS] and [SEP] around a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_tokens([f"[unused{i}]" for i in range(tokenizer.get_vocab_size(), size)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, settings: dict[str, Any]) -> None:
    """tokenizer.json and tokenizer_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


@torch.no_grad()
def spread(model: nn.Module, table: nn.Embedding, gain: float, ends: tuple[int, ...]) -> None:
    """Weights with which no side can hide a mistake, and every precision can be checked as on a trained model.

    Queries, keys and the first feed-forward matrices are `gain` times as large, or every answer would repeat one token; the entries that
    end a text never win against any other. After the second layer a layer adds a quarter, or noise would grow through the layers as it
    does in no trained model. Weights are multiples -7 to 7 of a step of their matrix, which int4 holds in blocks of any size.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or weight is table.weight:
            continue
        kind, numbers = name.split(".")[-1], [int(part) for part in name.split(".") if part.isdigit()]
        larger = gain if kind in ("q_proj", "k_proj", "gate_proj", "up_proj", "c_attn", "c_fc") else 1.0
        smaller = 0.25 if kind in ("o_proj", "down_proj", "c_proj") and numbers and numbers[0] > 1 else 1.0
        weight.copy_(in_steps(weight) * larger * smaller)
    table.weight.copy_(in_steps(table.weight))
    table.weight[list(ends)] = 0


def in_steps(weight: torch.Tensor) -> torch.Tensor:
    """Random multiples of one step with the standard deviation of `weight`."""
    steps = torch.randint(-7, 8, weight.shape)
    return steps * (weight.std() / steps.float().std())


def llama_model(seed: int, gain: float, **other: Any) -> nn.Module:
    """transformers' own initial weights, spread."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32_000} | other
    config = LlamaConfig(
        num_attention_heads=12, num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        max_position_embeddings=2048, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    spread(model, model.get_input_embeddings(), gain, (0, 1))
    return model


def gpt2_model(seed: int, gain: float) -> nn.Module:
    """GPT-2 small, spread."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=1, pad_token_id=1))
    spread(model, model.get_input_embeddings(), gain, (0, 1))
    return model


def mistral_model(seed: int, gain: float) -> nn.Module:
    """A small Mistral whose layers all see the last 1,024 positions only, spread."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, vocab_size=16_000,
        sliding_window=1024, max_position_embeddings=32_768, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    spread(model, model.get_input_embeddings(), gain, (0, 1))
    return model


def bert_model(seed: int) -> nn.Module:
    """BERT-base, transformers' own initial weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    return BertModel(BertConfig(), add_pooling_layer=False)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """TEXT, --out and --seed."""
    command = click.option("--seed", type=int, default=1, show_default=True)(command)
    command = click.option("--out", type=click.Path(path_type=Path), required=True)(command)
    return click.argument("text", type=click.Path(exists=True, path_type=Path))(command)


def causal(text: Path, out: Path, model: Any) -> None:
    """Writes a decoder and a byte-level tokenizer of its size."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": 1024,
    }
    save_tokenizer(byte_level(read_lines(text), model.config.vocab_size), out, settings)
    model.eval().save_pretrained(out)


@click.command()
@options
@click.option("--gain", type=float, default=2.0, show_default=True)
def llama(text: Path, out: Path, seed: int, gain: float) -> None:
    """A Llama with random weights, and a tokenizer trained on the lines of TEXT."""
    causal(text, out, llama_model(seed, gain))


@click.command()
@options
@click.option("--gain", type=float, default=2.0, show_default=True)
def gpt2(text: Path, out: Path, seed: int, gain: float) -> None:
    """GPT-2 small with random weights, and a tokenizer trained on the lines of TEXT."""
    causal(text, out, gpt2_model(seed, gain))


@click.command()
@options
@click.option("--gain", type=float, default=2.0, show_default=True)
def mistral(text: Path, out: Path, seed: int, gain: float) -> None:
    """A small Mistral with a sliding window of 1,024 and random weights, and a tokenizer trained on the lines of TEXT."""
    causal(text, out, mistral_model(seed, gain))


@click.command()
@options
def bert(text: Path, out: Path, seed: int) -> None:
    """BERT-base with random weights, and a tokenizer trained on the lines of TEXT."""
    model = bert_model(seed)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    save_tokenizer(word_pieces(read_lines(text), model.config.vocab_size), out, settings)
    vocabulary = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    model.eval().save_pretrained(out)


@click.command(name="sentences")
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--limit", type=int, default=512, show_default=True, help="Evenly spaced.")
def ragged(text: Path, out: Path, limit: int) -> None:
    """The sentences of TEXT, a line each: real text of real lengths for the encoders."""
    found = list(sentences(text))
    chosen = [found[i * len(found) // limit] for i in range(min(limit, len(found)))]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")


COMMANDS = (llama, gpt2, mistral, bert, ragged)
