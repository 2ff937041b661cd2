"""Trains a small language model of Llama's kind: python train.py --data FOLDER --out build/wiki-lm

FOLDER holds train.txt.gz and valid.txt.gz, a paragraph a line. The tokenizer (byte-level BPE) is trained on them too.
"""

import argparse
import gzip
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import train

BOS, EOS = "<s>", "</s>"
SIZES = {
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def make_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a text begins with <s>."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=size, min_frequency=2, special_tokens=[BOS, EOS], show_progress=False)
    from tokenizers.processors import TemplateProcessing

    made._tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts behind one another, each from <s> to </s>."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([i for row in ids for i in (0, *row, 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--vocabulary", type=int, default=6000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    texts = lines(arguments.data / "train.txt.gz")
    tokenizer = make_tokenizer(texts, arguments.vocabulary)
    ids, held = stream(tokenizer, texts), stream(tokenizer, lines(arguments.data / "valid.txt.gz"))
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=1, **SIZES)
    model = LlamaForCausalLM(config)

    def starts() -> Iterator[list[int]]:
        chooser = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(len(ids) - arguments.length - 1, (arguments.rows,), generator=chooser).tolist()

    def loss_of(chosen: list[int]) -> Tensor:
        batch = torch.stack([ids[start : start + arguments.length] for start in chosen])
        loss: Tensor = model(input_ids=batch, labels=batch, use_cache=False).loss
        return loss

    train(model, loss_of, starts(), arguments.steps, 2e-3, arguments.out / "training", decay=0.1)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    losses = []
    with torch.inference_mode():
        for start in range(0, len(held) - arguments.length, arguments.length)[:200]:
            losses.append(loss_of_held(model, held[start : start + arguments.length]))
    print(f"perplexity {math.exp(sum(losses) / len(losses)):.2f} a token, windows of {arguments.length} of valid.txt.gz")


def loss_of_held(model: LlamaForCausalLM, window: Tensor) -> float:
    """Mean loss of a window."""
    return float(model(input_ids=window[None], labels=window[None], use_cache=False).loss)


if __name__ == "__main__":
    main()
