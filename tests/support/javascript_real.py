"""Python's answers of real bundles, for javascript/tests/real.js: `PYTHONPATH=tests python -m support.javascript_real FOLDER`.

FOLDER holds bundles of language models and of embedding models with variants for the web, whose precisions are asked; `answers.json` and
`texts.json` are written beside them. WebAssembly has no kernels that round activations beside weights in blocks: of language models there
are also Python's answers without that rounding, `unrounded`, and JavaScript's must be these there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from onnxport.runtime import Model, load
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.reader import Bundle
from support.javascript_bundles import ODD, SENTENCES, answered, texts

CHATS = ("What is the capital of France?", "Write one sentence about the sea.", "List three colours.", "Was ist 2 + 2?")
TEXTS = ("The train to Berlin leaves at", "Once upon a time there was", "Ünïcödé — 日本 🙂, 1,234.56 €: ")
LONG = "The dog lay by the door of the house while the cat sat on a mat. " * 12


BLOCKWISE = "MatMulNBits"  # the operator that rounds activations, where its accuracy_level says so
EXACT = 1  # float32


def cases(bundle: Bundle, task: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """What a bundle of a task is asked: (call, input, options)."""
    if task == "embedding":
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


def unrounded(bundle: Bundle, variant: str, out: Path) -> Path | None:
    """A copy of a bundle with one variant whose products do not round activations; None where none does."""
    files = bundle.variants[variant].graphs.values()
    graphs = {file: onnx.load(bundle.file(file), load_external_data=False) for file in files}
    levels = [
        attribute
        for graph in graphs.values()
        for node in graph.graph.node if node.op_type == BLOCKWISE
        for attribute in node.attribute if attribute.name == "accuracy_level"
    ]  # fmt: skip
    if not levels:
        return None
    for attribute in levels:
        attribute.i = EXACT
    shutil.copytree(bundle.path, out, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()))
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    for file, graph in graphs.items():
        (out / file).unlink()
        (out / file).write_bytes(graph.SerializeToString())
        manifest["files"][file]["bytes"] = (out / file).stat().st_size
    (out / "bundle.json").unlink()
    (out / "bundle.json").write_text(json.dumps(manifest))
    return out


def answers_of(bundle: Bundle, variant: str) -> Iterator[dict[str, Any]]:
    """The cases of a variant with Python's answers."""
    with tempfile.TemporaryDirectory() as folder, load(bundle.path, precision=variant) as model:
        other = None if model.task == "embedding" else unrounded(bundle, variant, Path(folder, "unrounded"))
        exact: Model | None = None if other is None else load(other, precision=variant)
        for call, given, options in cases(bundle, model.task):
            case = {"precision": variant.removesuffix("@web"), "call": call, "input": given, "options": options}
            case["answer"] = answered(model, call, given, options)
            yield case if exact is None else case | {"unrounded": answered(exact, call, given, options)}
        if exact is not None:
            exact.close()


def write(folder: Path) -> None:
    """Both files, for every bundle in a folder."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(one.parent for one in folder.glob("*/bundle.json")):
        bundle = Bundle.open(path)
        answers[path.name] = [case for name in bundle.variants if name.endswith("@web") for case in answers_of(bundle, name)]
        print(path.name, len(answers[path.name]), flush=True)
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "texts.json").write_text(json.dumps({name: list(texts(folder / name)) for name in answers}))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
