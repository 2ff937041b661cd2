"""Tokenizers of models that translate between many languages: ids, text and languages are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxport.export.tokenizers.folder import hugging_face
from onnxport.runtime.tokenizer import TextTokenizer
from support.paths import EXAMPLE
from support.tokenizer_folders import LANGUAGE_FAMILIES, language_tokenizer

SENTENCES = (EXAMPLE / "test-200.tsv").read_text("utf-8").replace("\t", "\n").splitlines()
TEXTS = ["the cat sat on the mat", "a green house", "der Hund sucht Brot und läuft über die Straße", "x = y;", "  the  cat ", "猫"]
# family → two of its languages, how many there are, where answers have theirs
LANGUAGES = {
    "m2m100": (("en", "de"), 100, "forced"),
    "nllb": (("eng_Latn", "deu_Latn"), 202, "forced"),
    "mbart50": (("en_XX", "de_DE"), 52, "forced"),
    "mbart": (("en_XX", "de_DE"), 25, "start"),
    "plbart": (("java", "python"), 3, "start"),
}


def made(folder: Path, family: str) -> Any:
    tokenizer = language_tokenizer(folder, family, SENTENCES, 300)
    (folder / "config.json").write_text(json.dumps({"model_type": LANGUAGE_FAMILIES[family]}))
    return tokenizer


@pytest.mark.parametrize("family", LANGUAGES)
def test_ids_are_those_of_transformers_for_every_language(tmp_path: Path, family: str) -> None:
    loaded, found = made(tmp_path, family), hugging_face(tmp_path, LANGUAGE_FAMILIES[family])
    assert len(loaded.tokenize(TEXTS[0])) < len(TEXTS[0].replace(" ", "")), "a vocabulary that joins nothing tests nothing"
    codes, count, target = LANGUAGES[family]
    languages = found.languages
    assert languages is not None and len(languages["ids"]) == count and languages["target"] == target
    ours = TextTokenizer(found.by_side["source"])
    for code in codes:
        loaded.src_lang = f"__{code}__" if f"__{code}__" in getattr(loaded, "lang_code_to_id", {}) else code
        own = languages["ids"][code]
        before, after = ([own if i is None else i for i in languages[side]] for side in ("before", "after"))
        for text in TEXTS:
            assert loaded(text)["input_ids"] == [*before, *ours.encode([text], special=False)[0], *after], (code, text)
