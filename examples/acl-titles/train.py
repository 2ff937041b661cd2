"""Trains a small T5 that gives an abstract its title: python train.py --data FOLDER --out build/acl-titles

FOLDER holds train.jsonl.gz, dev.jsonl.gz and test.jsonl.gz with `abstract` and `title`: papers of the ACL Anthology, CC BY 4.0.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import sacrebleu
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import batches, train

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
SIZES = {"d_model": 256, "d_kv": 32, "d_ff": 640, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 8}
LONGEST = 288  # tokens of an abstract


def read(path: Path) -> list[tuple[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["abstract"], row["title"]) for row in rows]


def make_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """BPE of words with a mark of the space before them; a text ends with </s>."""
    made = Tokenizer(models.BPE(unk_token=UNK))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits()])
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, EOS, UNK], show_progress=False))
    made.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=EOS, unk_token=UNK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--tokens", type=int, default=2600, help="of a batch's abstracts, padding counted")
    parser.add_argument("--vocabulary", type=int, default=6000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows, test = (read(arguments.data / f"{name}.jsonl.gz") for name in ("train", "test"))
    tokenizer = make_tokenizer([text for row in rows for text in row], arguments.vocabulary)
    config = T5Config(
        vocab_size=len(tokenizer),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.1,
        **SIZES,
    )
    model = T5ForConditionalGeneration(config)
    sources = tokenizer([row[0] for row in rows], truncation=True, max_length=LONGEST)["input_ids"]
    targets = tokenizer([row[1] for row in rows], truncation=True, max_length=64)["input_ids"]

    def loss_of(chosen: list[int]) -> Tensor:
        batch = tokenizer.pad({"input_ids": [sources[i] for i in chosen]}, return_tensors="pt")
        labels = tokenizer.pad({"input_ids": [targets[i] for i in chosen]}, return_tensors="pt")
        wanted = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        loss: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=wanted).loss
        return loss

    order = batches([len(one) for one in sources], arguments.tokens, 1)
    train(model, loss_of, order, arguments.steps, 2e-3, arguments.out / "training")
    model.generation_config.max_new_tokens = 40
    model.generation_config.no_repeat_ngram_size = 3
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    titles = []
    with torch.inference_mode():
        for start in range(0, len(test), 16):
            sources = [row[0] for row in test[start : start + 16]]
            batch = tokenizer(sources, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt", return_token_type_ids=False)
            titles += tokenizer.batch_decode(model.generate(**batch, num_beams=4), skip_special_tokens=True)
    chrf = sacrebleu.corpus_chrf(titles, [[row[1] for row in test]]).score
    print(f"chrF {chrf:.2f} on {len(test)} abstracts of test.jsonl.gz; the first: {titles[0]!r}")


if __name__ == "__main__":
    main()
