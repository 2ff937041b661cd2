"""A converted byte-level BPE tokenizer gives the ids and the text that transformers' BartTokenizer gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from onnxport.errors import CheckpointError
from onnxport.export.tokenizers.folder import hugging_face
from onnxport.runtime.tokenizer import TextStream, TextTokenizer
from support.paths import EXAMPLE

ROWS = [line.split("\t") for line in (EXAMPLE / "test-200.tsv").read_text("utf-8").splitlines()]
TEXTS = [text for row in ROWS for text in row] + [
    *[
        "",
        " ",
        "\t",
        "a\r\nb",
        "  leading",
        "trailing  ",
        "in   between",
        "Hello 🙂",
        "日本語",
        "e\u0301 A\u030a",
        "\x00",
        "a\u200bb",
        "ﬁ ½",
    ],
    *["word" * 200, "<s> x </s>", "a<mask>b", " <mask> x", "a <pad>", "<unk>", "<new> a<new>b", "<extra>", "don't , we've .", "\ufdd0"],
]
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {  # tokenizer_config, special_tokens_map, added_tokens
    "plain": ({}, {}, {}),
    "prefix": ({"add_prefix_space": True}, {}, {}),
    "mapped": ({}, {"mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}, {}),
    "added": ({"additional_special_tokens": ["<extra>"]}, {}, {"<new>": 405}),
    "decoder": ({"added_tokens_decoder": {"4": {"content": "<mask>", "lstrip": True, "special": True}}}, {}, {}),
    "clean_up": ({"clean_up_tokenization_spaces": True}, {}, {}),
}


def make(folder: Path, kind: str) -> Path:
    config, mapped, added = CONFIGS[kind]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=405, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text for row in ROWS for text in row], trainer)
    folder.mkdir(exist_ok=True)
    made.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"} | config))
    if mapped:
        (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_ids_and_text_are_those_of_bart_tokenizer(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path / "model", kind)
    found = hugging_face(folder, "bart")
    made, files = found.by_side, list(found.files)
    assert made["source"] == made["target"]
    assert {"vocab.json", "merges.txt"} < {path.name for path in files}
    (tmp_path / "tokenizer.json").write_bytes(made["source"])
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    reference = transformers.BartTokenizer.from_pretrained(folder, local_files_only=True)
    for text, found in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert found == reference(text).input_ids, ascii(text)
        assert tokenizer.decode(found) == reference.decode(found, skip_special_tokens=True)
        stream = TextStream(tokenizer)
        assert "".join([*(stream.push(token) for token in found), stream.finish()]) == tokenizer.decode(found)


@pytest.mark.parametrize("model_type", ["bart", "gpt2"])
def test_a_tokenizer_json_that_says_what_the_class_says_is_taken_as_it_is(tmp_path: Path, model_type: str) -> None:
    data = hugging_face(make(tmp_path, "plain"), "bart").by_side["source"] + b"\n"
    (tmp_path / "tokenizer.json").write_bytes(data)
    found = hugging_face(tmp_path, model_type)
    assert found.by_side == {"source": data, "target": data}
    assert found.files == (tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("merges.txt", None, "has no merges.txt"),
        ("merges.txt", b"a b c\n", "transformers refuses"),
        ("merges.txt", b"\xc4\xa0 nothing-such\n", "transformers refuses"),
        ("tokenizer.json", b"{}", "not a usable tokenizer"),
    ],
)
def test_damaged_and_disagreeing_files_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes | None, expected: str) -> None:
    make(tmp_path, "plain")
    (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        hugging_face(tmp_path, "bart")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
