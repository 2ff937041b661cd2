"""Bundles for the tests of javascript/, with Python's answers; `PYTHONPATH=tests python -m support.javascript_bundles FOLDER` writes them.

`answers.json` holds the cases of each bundle: precision, the call, what it was given, with options by JavaScript's names, and the answer.
WebAssembly has no kernels that round activations beside weights in blocks: where Python's do, `unrounded` is its answer without.
`texts.json` holds texts, their ids, and the text of these.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxport.build.stages import build
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.tokenizer import TextTokenizer
from support import causal_folders, encoder_folders, hf_folders, structured_bundles
from support.paths import ROOT
from support.sentence_folders import write_whole
from support.target_bundles import KINDS

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Ann Lee? "},
    {"role": "assistant", "content": "31 ü🙂"},
    {"role": "user", "content": "name"},
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'][0] + ':' + message['content'] | trim + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SENTENCES = [
    "How are you?",
    "I would like to learn German.",
    "Where can I buy a ticket for the train to Berlin?",
    "Ünïcödé — 日本 🙂, 1,234.56 €!",
]
ODD = [
    "  two  spaces ",
    "a\u00a0b\u200bc",
    "“quotes” … ½ ﬁ",
    "日本語 🙂👍🏽",
    "<s> </s> <unk>",
    "tab\tnew\nline",
    "HELLO World's 1,234.56€",
]
SEARCHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"topK": 20, "topP": 0.9, "seed": 2**40 + 5},
    {"repetitionPenalty": 1.4},
    {"noRepeatNgram": 2, "minNewTokens": 9, "maxNewTokens": 20},
    {"minNewTokens": 6, "temperature": 1.5, "topK": 50, "seed": 7},
]

VECTORS: list[dict[str, Any]] = [{}, {"promptName": "document"}, {"prompt": "see what: "}, {"truncateDim": 7, "normalize": True}]
BLOCKWISE = "MatMulNBits"  # the operator that rounds activations, where its accuracy_level says so
EXACT = 1  # float32
Case = tuple[str, Any, dict[str, Any]]
LONG = {"minNewTokens": 135, "maxNewTokens": 135}  # longer than the cache is at first


@dataclass(frozen=True)
class Kind:
    """A bundle and what is asked of it. write: the source, in a folder that is given. cases: (call, input, options)."""

    write: Callable[[Path], Path]
    precisions: tuple[str, ...]
    cases: list[Case]


def _chat(folder: Path) -> Path:
    tokenizer = structured_bundles.byte_level()
    causal_folders.write(folder, "llama", vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=256)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _marian(folder: Path) -> Path:
    own = {"bad_words_ids": [[96], [5, 6]], "renormalize_logits": True, "max_length": 15, "num_beams": 1}
    return hf_folders.marian(folder, seed=3, generation=own)


def _embedder(folder: Path) -> Path:
    return encoder_folders.write(folder, encoder_folders.make("bert"), "bert")


IDS = [[5, 6, 7, 8, 9, 10], list(range(3, 40))]
KINDS_FOR_JAVASCRIPT = {
    "translator": Kind(
        lambda folder: ROOT / "examples" / "en-de",
        ("fp32", "int8"),
        [("generate", text, options) for text in SENTENCES[:2] for options in SEARCHES]
        + [("generate", text, {}) for text in SENTENCES[2:]]
        + [("generate", SENTENCES[0], LONG)]
        + [("generate", SENTENCES[1], {"stop": "Deutsch"}), ("generate", SENTENCES[1], {"stopTokenIds": [14], "minNewTokens": 2})],
    ),
    "chat": Kind(
        _chat,
        ("fp32", "fp16", "int8"),
        [
            ("chat", TALK, {"maxNewTokens": 100}),
            *(("generate", "The names", {"maxNewTokens": 30} | options) for options in [*SEARCHES, LONG]),
        ],
    ),
    "mixed": Kind(KINDS["mixed"], ("fp32",), [("generate", ids, {"maxNewTokens": 70}) for ids in IDS]),
    "marian": Kind(_marian, ("fp32",), [("generate", ids, options) for ids in IDS[:1] for options in SEARCHES]),
    "embedder": Kind(_embedder, ("fp32", "int8"), [("encode", text, {}) for text in ("Hello.", "one two, three. " * 12)]),
    "layers": Kind(write_whole, ("fp32",), [("encode", "a dog lay by the door", options) for options in VECTORS]),
}


def _snake(options: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name): value for name, value in options.items()}


def answered(model: Model, call: str, given: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Python's answer to a call, by JavaScript's names."""
    if call == "encode":
        named = {{"normalize": "normalize_embeddings"}.get(name, name): value for name, value in _snake(options).items()}
        return {"vector": model.encode([given], **named)[0].tolist()}
    asked = _snake(options) | {"beam": 1}
    found = (model.chat([given], **asked) if call == "chat" else model.generate([given], **asked))[0]
    answer = {
        "text": found.text,
        "tokens": found.tokens,
        "tokenLogprobs": found.token_logprobs,
        "finishReason": found.finish_reason,
    }
    return answer | ({"prompt": model.prompt(given)} if call == "chat" else {})


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


def answers_of(bundle: Bundle, variant: str, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """The cases of a variant with Python's answers."""
    with tempfile.TemporaryDirectory() as folder, load(bundle.path, precision=variant) as model:
        other = unrounded(bundle, variant, Path(folder, "unrounded"))
        with nullcontext() if other is None else load(other, precision=variant) as exact:
            for call, given, options in cases:
                case = {"precision": variant.removesuffix("@web"), "call": call, "input": given, "options": options}
                case["answer"] = answered(model, call, given, options)
                yield case if exact is None else case | {"unrounded": answered(exact, call, given, options)}


def texts(bundle: Path) -> Iterator[list[Any]]:
    """Texts, their ids, and what becomes of these, by the bundle's own tokenizer."""
    tokenizer = TextTokenizer(bundle / "tokenizer.json")
    lines = (ROOT / "examples" / "en-de" / "test-200.tsv").read_text(encoding="utf-8").splitlines()
    for text in [*(text for line in lines for text in line.split("\t")), *ODD]:
        (ids,) = tokenizer.encode([text])
        yield [text, ids, tokenizer.decode(ids)]


def write(folder: Path) -> None:
    """All bundles, with `answers.json` and `texts.json` beside them."""
    answers = {}
    for name, kind in KINDS_FOR_JAVASCRIPT.items():
        shutil.rmtree(folder / "sources" / name, ignore_errors=True)  # of an earlier run
        source = kind.write(folder / "sources" / name)
        build(str(source), folder / name, precision=kind.precisions, target=("web",), force=True)
        bundle = Bundle.open(folder / name)
        answers[name] = [case for precision in kind.precisions for case in answers_of(bundle, f"{precision}@web", kind.cases)]
        print(name, flush=True)
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "texts.json").write_text(json.dumps({name: list(texts(folder / name)) for name in ("translator", "chat", "embedder")}))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
