"""A Marian folder whose vocabulary lacks pieces of its tokenizers: exported, and read by the runtime and the reference alike."""

import json
import shutil
from pathlib import Path

import pytest

from onnxport.build.stages import build
from onnxport.errors import CheckpointError
from onnxport.export.reference.model import PyTorchReference
from onnxport.export.resolve import resolve
from onnxport.runtime import load
from support import hf_folders
from support import tokenizer_folders as spm

SENTENCES = ["the cat sat on the mat", "a dog and a cat", "how are you today", "we are here and you are there", "it is a nice day"] * 4
TEXTS = ["the cat and the dog", "how nice", "zzz the day zzz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many rows as ids, so that an entry that is counted without being an id would not fit."""
    path = tmp_path_factory.mktemp("lacking") / "marian"
    ids = spm.marian_tokenizer(path, SENTENCES, SENTENCES, 60)
    lacking = [token for token in ids if len(token) > 1 and token.isalpha()][::3]
    assert lacking
    kept = [token for token in ids if token not in lacking]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(kept)}))
    return hf_folders.marian(path, seed=4, vocab_size=len(kept), encoder_layers=1, decoder_layers=1)


def test_entries_that_are_no_ids_are_not_counted(folder: Path) -> None:
    found = resolve(folder)
    tokenizer = json.loads(found.tokenizers["source"])
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer["model"]["vocab"]) > config["vocab_size"] == len(json.loads((folder / "vocab.json").read_text()))


def test_a_vocabulary_with_too_many_ids_is_still_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "more"))
    ids = json.loads((copy / "vocab.json").read_text())
    (copy / "vocab.json").write_text(json.dumps(ids | {"extra": len(ids)}))
    with pytest.raises(CheckpointError, match=f"ids up to {len(ids)} and the source vocabulary {len(ids)} rows"):
        resolve(copy)


def test_texts_are_answered_as_by_the_original(folder: Path, tmp_path: Path) -> None:
    from transformers import MarianTokenizer

    theirs = MarianTokenizer.from_pretrained(folder, local_files_only=True)
    reference = PyTorchReference(folder)
    with load(build(folder, tmp_path / "b", precision=("fp32",)).path, threads=1) as model:
        rows = [model.tokenize(text) for text in TEXTS]
        assert rows == [theirs(text).input_ids for text in TEXTS]
        assert any(theirs.unk_token_id in row for row in rows)
        assert reference._ids(TEXTS) == rows
        expected = reference.generate(TEXTS, 10)
        found = model.generate(TEXTS, max_new_tokens=10)
    assert [(one.text, one.tokens) for one in found] == [(one["text"], one["tokens"]) for one in expected]
