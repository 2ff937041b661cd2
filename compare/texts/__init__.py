"""Texts that come with the kit, in several languages and programming languages, with conversations, short and long.

Golden answers are given on those of `golden.toml`; schemes are calibrated on those of `calibration.toml` where there is no data. No
sentence is in both: a variant must not be judged on what it was fitted to.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from onnxport.errors import TextError
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.tokenizer import TextTokenizer

MOST_ALIKE = 1 / 3  # of the tokens of a text: a space is the most frequent byte of English, one in six


@dataclass(frozen=True)
class Sample:
    """A text, or a conversation whose last message is an answer. language: a code as `de`, or the name of a programming language.

    messages: {"role", "content"} each; () of a text.
    """

    language: str
    text: str
    messages: tuple[dict[str, str], ...] = ()

    def rendered(self, chat: ChatTemplate | None) -> str | None:
        """The conversation as a model with this template reads and writes it; None where it is none, or the template refuses it."""
        if chat is None or not self.messages:
            return None
        try:
            return chat.render(self.messages[:-1]) + self.messages[-1]["content"]
        except TextError:
            return None


def golden_texts() -> tuple[Sample, ...]:
    """The texts that golden answers are given on."""
    return _read("golden.toml")


def calibration_texts() -> tuple[Sample, ...]:
    """The texts that schemes are calibrated on where there is no data."""
    return _read("calibration.toml")


def token_rows(
    samples: Sequence[Sample], tokenizer: TextTokenizer, chat: ChatTemplate | None = None, most: int | None = None, end: int | None = None
) -> list[list[int]]:
    """Ids of each sample as a model reads it, with special tokens; conversations through its template, which has its own special tokens.

    Where there is no template, or it refuses a conversation, its messages stand with an empty line between them. most: rows are cut to it.
    end: ids from it on are left out, for a model may have fewer rows than its tokenizer has tokens. A sample without any is left out, and
    one of which the tokenizer makes mostly one token: it does not know the language.
    """
    rows = []
    for sample in samples:
        rendered = sample.rendered(chat)
        (ids,) = tokenizer.encode([sample.text]) if rendered is None else tokenizer.encode([rendered], special=False)
        if known := [i for i in ids if end is None or i < end]:
            ((_, count),) = Counter(known).most_common(1)
            rows += [known[:most]] if count <= max(1, MOST_ALIKE * len(known)) else []
    return rows


def _read(name: str) -> tuple[Sample, ...]:
    content = (resources.files(__package__) / name).read_text(encoding="utf-8")
    return tuple(_sample(entry) for entry in tomllib.loads(content)["texts"])


def _sample(entry: dict[str, Any]) -> Sample:
    messages = tuple(entry.get("chat", ()))
    return Sample(entry["language"], entry["text"] if "text" in entry else "\n\n".join(one["content"] for one in messages), messages)
