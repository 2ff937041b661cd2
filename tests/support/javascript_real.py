"""Python's answers of real bundles, for javascript/tests/real.js: `PYTHONPATH=tests python -m support.javascript_real FOLDER`.

FOLDER holds bundles of language models and of embedding models with variants for the web, whose precisions are asked; `answers.json` and
`texts.json` are written beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.reader import Bundle
from support.javascript_bundles import ODD, SENTENCES, answers_of, texts

CHATS = ("What is the capital of France?", "Write one sentence about the sea.", "List three colours.", "Was ist 2 + 2?")
TEXTS = ("The train to Berlin leaves at", "Once upon a time there was", "Ünïcödé — 日本 🙂, 1,234.56 €: ")
LONG = "The dog lay by the door of the house while the cat sat on a mat. " * 12


def cases(bundle: Bundle) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """What a bundle is asked: (call, input, options)."""
    if bundle.task == "embedding":
        yield from (("encode", text, {}) for text in (*SENTENCES, *ODD, LONG))
        return
    greedy = golden.read_answers(bundle)[golden.GREEDY]
    for ids in golden.sources(greedy):
        yield "generate", list(map(int, ids)), {"maxNewTokens": greedy["tokens"].shape[1]}
    for text in (*TEXTS, LONG):
        yield "generate", text, {"maxNewTokens": 16}
    yield "generate", TEXTS[1], {"maxNewTokens": 16, "temperature": 0.8, "topP": 0.9, "seed": 7}
    for text in CHATS if bundle.chat is not None else ():
        yield "chat", [{"role": "user", "content": text}], {"maxNewTokens": 24}


def write(folder: Path) -> None:
    """Both files, for every bundle in a folder."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(one.parent for one in folder.glob("*/bundle.json")):
        bundle = Bundle.open(path)
        answers[path.name] = [
            case for name in bundle.variants if name.endswith("@web") for case in answers_of(bundle, name, list(cases(bundle)))
        ]
        print(path.name, len(answers[path.name]), flush=True)
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "texts.json").write_text(json.dumps({name: list(texts(folder / name)) for name in answers}))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
