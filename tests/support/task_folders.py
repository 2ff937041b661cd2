"""Tiny random encoders with a head for a task, in Hugging Face's layout, with the whole of their tokenizers' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from support import encoder_folders as folders

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LENGTH = 48  # positions
BERT = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
ROBERTA = {
    "bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>",
    "mask_token": "<mask>",
}  # fmt: skip
BYTES = 300  # rows of the table of a model that reads bytes
SAMPLE = "Ada came to London. The cat sat on a mat, and the dog lay by the door of Mr. Smith's house in New York; it didn't move. " * 3


def letters(family: str) -> Tokenizer:
    """WordPiece of single letters with a mask: 61 ids."""
    made = folders.tokenizer(family)
    made.add_special_tokens([BERT["mask_token"] if folders.pad(family) == 0 else ROBERTA["mask_token"]])
    return made


def byte_level() -> Tokenizer:
    """RoBERTa's byte pairs, trained on a few words."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([SAMPLE], trainers.BpeTrainer(vocab_size=BYTES, special_tokens=special, initial_alphabet=alphabet))
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return made


def save_tokenizer(folder: Path, tokenizer: Tokenizer, names: dict[str, str], types: bool = False) -> None:
    """As transformers saves it."""
    reads = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, model_input_names=reads, **names)
    fast.save_pretrained(folder)


def write(folder: Path, family: str, head: str, labels: tuple[str, ...] = (), seed: int = 0, **config: Any) -> Path:
    """A model with its tokenizer, of letters, or of bytes for RoBERTa. labels: names of the head's outputs."""
    of_bytes = family == "roberta"
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
    size = {"vocab_size": BYTES, "max_position_embeddings": LENGTH + 2} if of_bytes else {}
    model = folders.make(family, head, seed=seed, **size, **names, **config)
    model.save_pretrained(folder)
    save_tokenizer(folder, byte_level() if of_bytes else letters(family), ROBERTA if folders.pad(family) else BERT, family == "bert")
    return folder
