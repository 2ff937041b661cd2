"""Tokenizers of language models' folders without a tokenizer.json, and their chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from onnxport.errors import CheckpointError
from onnxport.export.resolve import resolve
from onnxport.export.tokenizers import chat_template
from onnxport.export.tokenizers.folder import hugging_face
from onnxport.runtime.tokenizer import TextTokenizer
from support import causal_folders
from support import tokenizer_folders as spm
from support.paths import EXAMPLE

ROWS = [line.split("\t") for line in (EXAMPLE / "test-200.tsv").read_text("utf-8").splitlines()]
TEXTS = [text for row in ROWS for text in row] + [
    *["", " ", "\t", "a\r\nb", "  leading", "trailing  ", "in   between", "Hello 🙂", "日本語", "e\u0301 A\u030a", "\x00", "1234567 a1b2"],
    *["word" * 200, "<s> x </s>", "<|endoftext|>", "a<|endoftext|>b", "don't , we've .", "DON'T", "\n\n x\n", "\ufdd0", "<unk>"],
]
TOKENS = {"gpt2": "<|endoftext|>", "qwen2": "<|endoftext|>", "qwen3": "<|endoftext|>"}
CLASSES = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "llama": "LlamaTokenizer"}


def make(folder: Path, family: str, **config: Any) -> Path:
    """vocab.json and merges.txt, or Llama's tokenizer.model, with tokenizer_config.json and config.json."""
    folder.mkdir(exist_ok=True)
    if family == "llama":
        options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        (folder / "tokenizer.model").write_bytes(spm.train((t for row in ROWS for t in row), 600, **options))
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [TOKENS[family]]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator([text for row in ROWS for text in row], trainer)
        made.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": CLASSES[family]} | config))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return folder


@pytest.mark.parametrize("family", CLASSES)
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    import transformers

    folder = make(tmp_path / "model", family)
    found = hugging_face(folder, family)
    made, files = found.by_side, list(found.files)
    assert made["source"] == made["target"] and folder / "tokenizer_config.json" in files
    assert {"tokenizer.model"} if family == "llama" else {"vocab.json", "merges.txt"} < {path.name for path in files}
    (tmp_path / "tokenizer.json").write_bytes(made["source"])
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    reference = getattr(transformers, CLASSES[family]).from_pretrained(folder, local_files_only=True)
    for text, found in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert found == reference(text).input_ids, ascii(text)
        assert tokenizer.decode(found) == reference.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_llama_pieces_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """Not by way of transformers: the model itself. (A leading space is the prefix in transformers, and a piece more in SentencePiece.)"""
    import sentencepiece

    folder = make(tmp_path / "model", "llama")
    made = hugging_face(folder, "llama").by_side
    (tmp_path / "tokenizer.json").write_bytes(made["source"])
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    plain = [text for text in TEXTS if text.lstrip(" ") == text != "" and not any(mark in text for mark in ("<", "\x00"))]
    for text, found in zip(plain, tokenizer.encode(plain), strict=True):
        assert [i for i in found if i != model.bos_id()] == model.encode(text), ascii(text)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [("merges.txt", None, "has no merges.txt"), ("vocab.json", None, "has no vocab.json"), ("vocab.json", b"[", "transformers refuses")],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes | None, expected: str) -> None:
    folder = make(tmp_path / "model", "gpt2")
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=expected) as caught:
        hugging_face(folder, "gpt2")
    assert "\n" not in str(caught.value)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"


def test_a_folder_carries_its_chat_template(tmp_path: Path) -> None:
    folder = causal_folders.write(tmp_path / "model", "gpt2", vocab_size=600, n_layer=1)
    config = json.loads((folder / "config.json").read_text())
    make(folder, "gpt2", chat_template=TEMPLATE, bos_token="<|endoftext|>", eos_token={"__type": "AddedToken", "content": "<|endoftext|>"})
    (folder / "config.json").write_text(json.dumps(config))
    found = resolve(folder)
    assert found.chat == chat_template.ChatTemplate(TEMPLATE, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= found.hashes.keys()


def test_where_a_chat_template_may_be(tmp_path: Path) -> None:
    def template() -> chat_template.ChatTemplate | None:
        return hugging_face(folder, "gpt2").chat

    folder = make(tmp_path / "model", "gpt2")
    assert template() is None
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    names = {"eos_token": "</s>", "extra_special_tokens": {"turn_token": "<turn>"}}
    make(folder, "gpt2", chat_template=several, **names)
    tokens = {"bos_token": "<|endoftext|>", "eos_token": "</s>", "turn_token": "<turn>", "unk_token": "<|endoftext|>"}
    assert template() == chat_template.ChatTemplate("d", tokens)
    (own := folder / "chat_template.jinja").write_text("own")
    assert template() == chat_template.ChatTemplate("own", tokens)
    assert own in hugging_face(folder, "gpt2").files
    own.unlink()
    make(folder, "gpt2", chat_template=3)
    with pytest.raises(CheckpointError, match="chat_template that is int"):
        template()
