"""Tiny random encoders in Hugging Face's layout, written by transformers' own classes, with tokenizers laid out as their families' are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *".,?!"]
BERT, ROBERTA = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], ["<s>", "<pad>", "</s>", "<unk>"]
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert", "distilbert": "DistilBert"}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {  # head → the class's ending, and what its config says
    "bare": ("Model", {}),
    "single": ("ForSequenceClassification", {"num_labels": 3, "problem_type": "single_label_classification"}),
    "multi": ("ForSequenceClassification", {"num_labels": 4, "problem_type": "multi_label_classification"}),
    "regression": ("ForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "questions": ("ForQuestionAnswering", {}),
    "tokens": ("ForTokenClassification", {"num_labels": 5}),
    "masked": ("ForMaskedLM", {}),
    "choices": ("ForMultipleChoice", {}),
    "score": ("ForSequenceClassification", {"num_labels": 1}),
}
COMMON: dict[str, Any] = {"vocab_size": 61, "max_position_embeddings": 48, "num_hidden_layers": 2, "intermediate_size": 44}
DISTIL = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}


def pad(family: str) -> int:
    """The id of padding."""
    return 0 if family in ("bert", "distilbert") else 1


def make(family: str, head: str = "bare", size: int = 20, heads: int = 2, seed: int = 0, **config: Any) -> Any:
    """A model of the family in eval mode, every parameter random. size: of a head of attention; config: by BERT's names."""
    import transformers

    ending, more = HEADS[head]
    settings = COMMON | {"hidden_size": size * heads, "num_attention_heads": heads, "pad_token_id": pad(family)} | more | config
    if family == "distilbert":
        settings = {DISTIL.get(name, name): value for name, value in settings.items()}
    model = getattr(transformers, CLASSES[family] + ending)(getattr(transformers, f"{CLASSES[family]}Config")(**settings)).eval()
    randomize(model, seed)
    return model


def randomize(model: Any, seed: int = 0) -> None:
    """Values of a usual size, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
            else:
                parameter.copy_(noise * (0.6 if "embedding" in name else 1.3 * parameter.shape[-1] ** -0.5))


def tokenizer(family: str) -> Tokenizer:
    """WordPiece of single letters with the family's special tokens: 60 ids."""
    pad_token, begin, end, unknown = BERT if pad(family) == 0 else [ROBERTA[1], ROBERTA[0], ROBERTA[2], ROBERTA[3]]
    pieces = [*(BERT if pad(family) == 0 else ROBERTA), *PIECES]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown, max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [(end, pieces.index(end)), (begin, pieces.index(begin))]
    made.post_processor = processors.BertProcessing(*ids) if pad(family) == 0 else processors.RobertaProcessing(*ids, False, False)
    made.add_special_tokens([pad_token, begin, end, unknown])
    return made


def write(folder: Path, model: Any, family: str, text: bool = True, **options: Any) -> Path:
    """`save_pretrained`, whose `options` are given, with a tokenizer unless `text` is false; returns the folder."""
    folder = Path(folder)
    model.save_pretrained(folder, **options)
    if text:
        tokenizer(family).save(str(folder / "tokenizer.json"))
    return folder


def change(folder: Path, **changes: Any) -> Path:
    """Keys of config.json replaced; `...` drops one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def batch(family: str, lengths: list[int], types: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids padded on the right, with their mask and, for `types` > 0, kinds of tokens."""
    generator = torch.Generator().manual_seed(seed)
    real = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(2, COMMON["vocab_size"], (len(lengths), max(lengths)), generator=generator)
    found = {"input_ids": torch.where(real > 0, ids, pad(family)), "attention_mask": real}
    return found | ({"token_type_ids": torch.randint(0, types, ids.shape, generator=generator) * real} if types else {})
