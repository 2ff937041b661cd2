"""Tokenizers of Hugging Face folders as tokenizer.json files, which the runtime reads without sentencepiece or transformers."""

from __future__ import annotations

from pathlib import Path

from onnxport.errors import CheckpointError


def hugging_face(folder: Path, model_type: str) -> tuple[dict[str, bytes], list[Path]]:
    """`source` and `target` → bytes of a tokenizer.json (equal where one serves both), and the files read.

    ({}, []) for a folder without tokenizer files. CheckpointError when they are damaged, disagree, or cannot be said exactly.
    """
    from onnxport.export.tokenizers import byte_level, library, marian

    convert = {"marian": marian.convert, "bart": byte_level.convert}.get(model_type, library.convert)
    ready = folder / "tokenizer.json"
    # transformers reads Marian's .spm files whatever else is there, so they are what counts where they are.
    pieces = model_type == "marian" and any((folder / name).is_file() for name in marian.PIECES)
    if ready.is_file() and not pieces:
        return dict.fromkeys(("source", "target"), _read(ready)), [ready]
    made, files = convert(folder)
    return {side: tokenizer.to_str().encode() for side, tokenizer in made.items()}, files


def _read(path: Path) -> bytes:
    from tokenizers import Tokenizer

    try:
        data = path.read_bytes()
        Tokenizer.from_str(data.decode())
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a usable tokenizer ({str(e).splitlines()[0]}); copy it again") from e
    return data
