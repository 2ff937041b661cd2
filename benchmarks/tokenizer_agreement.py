"""How many texts the converted tokenizer reads and writes exactly as the folder's own tokenizer in transformers does.

python benchmarks/tokenizer_agreement.py FOLDER TEXT_FILE --limit 10000 [--side target]
TEXT_FILE: a text a line. Ids are compared for the side asked for, decoded text for the target side's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from onnxport.export.tokenizers.folder import hugging_face
from onnxport.runtime.tokenizer import TextTokenizer


def main() -> None:
    """Print counts, and the first texts that differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--limit", type=int, default=10000)
    parser.add_argument("--side", choices=("source", "target"), default="source")
    arguments = parser.parse_args()
    texts = arguments.texts.read_text(encoding="utf-8").split("\n")[: arguments.limit]
    result = compare(arguments.folder, [text for text in texts if text], arguments.side)
    print(json.dumps(result, ensure_ascii=False, indent=1))


def compare(folder: Path, texts: Sequence[str], side: str = "source") -> dict[str, object]:
    """`texts`, `equal_ids`, `equal_text` (of the reference's ids), and up to five texts each that differ."""
    from transformers import AutoTokenizer

    kind = json.loads((folder / "config.json").read_bytes())["model_type"] if (folder / "config.json").is_file() else "marian"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = hugging_face(folder, kind).by_side
    with tempfile.TemporaryDirectory() as place:
        sides = {}
        for name, data in made.items():
            (path := Path(place) / f"{name}.json").write_bytes(data)
            sides[name] = TextTokenizer(path)
    expected = [reference(**{"text" if side == "source" else "text_target": text}).input_ids for text in texts]
    found = sides[side].encode(texts)
    ids = [text for text, a, b in zip(texts, expected, found, strict=True) if a != b]
    decoded = [reference.decode(row, skip_special_tokens=True) for row in expected]
    words = [(a, b) for row, a in zip(expected, decoded, strict=True) if (b := sides["target"].decode(row)) != a]
    total = len(texts)
    return {
        "texts": total,
        "equal_ids": total - len(ids),
        "equal_text": total - len(words),
        "different_ids": ids[:5],
        "different_text": words[:5],
    }


if __name__ == "__main__":
    main()
