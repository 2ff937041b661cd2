"""Tiny random models that write bytes, so that any text can come of them, and forms to ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from support.tiny_bundles import BOS, EOS, TinyModel, write_bundle

SAMPLE = ['{"name": "Ann Lee", "age": 31, "tags": ["a", "b"], "well": true, "more": null}', "The number of names is one, two, three or 4."]
POSITIONS, SIZE = 256, 320
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "well": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "well"],
    "additionalProperties": False,
}
JSON = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
DATE = r"20[0-9]{2}-(0[1-9]|1[0-2])"
REGEX = {"type": "regex", "regex": DATE}
LARK = {"type": "grammar", "grammar": 'start: word ("+" word){1,2}\nword: "one" | "two"'}


def byte_level() -> Tokenizer:
    """Byte pairs of a few words, with the ids that tiny bundles have for padding, begin and end."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(SAMPLE, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return made


def model(kind: str, sharpness: float = 3.0) -> TinyModel:
    """A model for `byte_level`."""
    return TinyModel(kind, 0, sharpness, vocabulary=byte_level().get_vocab_size(), positions=POSITIONS)


def write(out: Path, kind: str, sharpness: float = 3.0, **settings: object) -> Path:
    """A bundle of it."""
    return write_bundle(out, model(kind, sharpness), text=byte_level(), **settings)


def fits(text: str) -> bool:
    """Whether a text follows SCHEMA."""
    value = json.loads(text)
    assert isinstance(value, dict) and set(value) <= set(SCHEMA["properties"]) and {"name", "age", "well"} <= set(value)
    assert isinstance(value["name"], str) and len(value["name"]) <= 8
    assert type(value["age"]) is int and 0 <= value["age"] <= 130
    assert set(value.get("tags", ())) <= {"a", "b"} and len(value.get("tags", ())) <= 2
    assert value["well"] in (True, False, None)
    return True


def is_date(text: str) -> bool:
    """Whether a text follows DATE."""
    return re.fullmatch(DATE, text) is not None


def is_sum(text: str) -> bool:
    """Whether a text follows LARK."""
    return re.fullmatch(r"(one|two)(\+(one|two)){1,2}", text) is not None
