"""Families whose tokenizers are of the `tokenizers` library in transformers too: what it makes of the folder's files is kept."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from onnxport.errors import CheckpointError
from onnxport.export.tokenizers import special

FILES = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def convert(folder: Path) -> tuple[dict[str, Tokenizer], list[Path]]:
    """One tokenizer for both sides, and the files it came from. ({}, []) without any such file; CheckpointError else."""
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        return {}, []
    alone = {path.name for path in found} & {"vocab.json", "merges.txt"}
    if len(alone) == 1:
        missing = "merges.txt" if "vocab.json" in alone else "vocab.json"
        raise CheckpointError(f"{folder} has no {missing}, which a byte-level BPE tokenizer needs; copy the whole folder")
    from onnxport.export.transformers_library import import_transformers, quiet, refusing

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
    return dict.fromkeys(("source", "target"), made), sorted({*found, *(folder / n for n in special.FILES if (folder / n).is_file())})
