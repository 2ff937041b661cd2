"""Tokenizers of a folder or of an adapter as bytes of a tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from onnxport.errors import CheckpointError, one_line
from onnxport.export.tokenizers import byte_level, marian, special_tokens
from onnxport.export.transformers_library import import_transformers, quiet, refusing
from onnxport.runtime.tokenizer import UNKNOWN_FROM

# files that transformers makes a tokenizer of
FILES = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def hugging_face(folder: Path, model_type: str) -> tuple[dict[str, bytes], list[Path]]:
    """`source` and `target` → bytes of a tokenizer.json (equal where one serves both), and the files read.

    ({}, []) for a folder without tokenizer files. CheckpointError when they are damaged, disagree, or no tokenizer.json can say the same.
    """
    convert = {"marian": marian.convert, "bart": byte_level.convert}.get(model_type, convert_by_library)
    ready = folder / "tokenizer.json"
    # transformers reads Marian's .spm files whatever else is there, so they are what counts where they are.
    pieces = model_type == "marian" and any((folder / name).is_file() for name in marian.PIECES)
    if ready.is_file() and not pieces:
        return dict.fromkeys(("source", "target"), _read(ready)), [ready]
    made, files = convert(folder)
    return {side: tokenizer.to_str().encode() for side, tokenizer in made.items()}, files


def convert_by_library(folder: Path) -> tuple[dict[str, Tokenizer], list[Path]]:
    """One tokenizer for both sides, and the files it came from. ({}, []) without any such file; CheckpointError else."""
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        return {}, []
    alone = {path.name for path in found} & {"vocab.json", "merges.txt"}
    if len(alone) == 1:
        missing = "merges.txt" if "vocab.json" in alone else "vocab.json"
        raise CheckpointError(f"{folder} has no {missing}, which a byte-level BPE tokenizer needs; copy the whole folder")
    transformers = import_transformers()
    with quiet(), refusing(folder):
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        made = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(made, Tokenizer):
        raise CheckpointError(
            f"{folder} has a {type(loaded).__name__}, which cannot be written as a tokenizer.json; give a tokenizer.json instead"
        )
    made.no_padding()
    made.no_truncation()
    return dict.fromkeys(("source", "target"), made), sorted(
        {*found, *(folder / n for n in special_tokens.FILES if (folder / n).is_file())}
    )


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        Tokenizer.from_str(data.decode())
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a usable tokenizer ({one_line(e)}); copy it again") from e
    return data


def tokenizer_bytes(value: Any) -> bytes:
    """The tokenizer.json of a path or a tokenizers.Tokenizer, after it was proven to load."""
    if isinstance(value, Tokenizer):
        return value.to_str().encode()
    path = Path(value)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"tokenizer {path} cannot be read: {error.strerror}; give the path of a tokenizer.json") from error
    try:
        Tokenizer.from_str(data.decode())
    except Exception as error:
        raise CheckpointError(f"tokenizer {path} is not a tokenizer.json: {type(error).__name__}: {one_line(error)}") from error
    return data


def vocabulary_problem(data: bytes, rows: int, side: str) -> str | None:
    """Why a tokenizer does not fit a table of `rows`; None where it fits. Entries behind the mark of a converted tokenizer are no ids."""
    vocabulary = Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True)
    end = vocabulary.get(UNKNOWN_FROM)
    largest = max((i for i in vocabulary.values() if end is None or i < end), default=-1)
    if largest >= rows:
        return f"the {side} tokenizer has ids up to {largest} and the {side} vocabulary {rows} rows"
    return None
