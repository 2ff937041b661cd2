"""Bundles of real models used for their tasks, each variant against the original library on the same folder.

    python benchmarks/real_tasks.py vectors FOLDER BUNDLE     # all-MiniLM-L6-v2; needs sentence-transformers
    python benchmarks/real_tasks.py entities FOLDER BUNDLE    # a folder with an ONNX file for entities, such as PyPI's rampart
    python benchmarks/real_tasks.py chat FOLDER BUNDLE        # a language model; without a chat template it goes on with the question

Each prints a row of a Markdown table for each case. `chat --llama PYTHON` asks llama.cpp's files of the same weights too; PYTHON is that of
`benchmarks/setup.py llama_cpp`, and FOLDER one that benchmarks/peers/llama_cpp.py reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import click
import numpy as np

from onnxport.compare.protocol.client import Client
from onnxport.runtime import load

HERE = Path(__file__).resolve().parent
LLAMA = ("f32", "q8_0", "q4_0")
TEXTS = ["How do I reset my password?", "I forgot my login.", "The weather is fine today.", "Wie setze ich mein Passwort zurück?"]
WISHES: list[dict[str, Any]] = [
    {},
    {"normalize_embeddings": True},
    {"truncate_dim": 64},
    {"truncate_dim": 64, "normalize_embeddings": True},
    {"prompt": "query: "},
    {"batch_size": 1},
]
NAMED = [
    "My name is Ada Lovelace and my phone is +44 20 7946 0958, write to ada.lovelace@example.com.",
    "Ship it to 221B Baker Street, London, NW1 6XE, attention John H. Watson.",
    "Please wire it: account 12345678, routing number 021000021, tax id 078-05-1120.",
    "José Álvarez-García vive en la calle Mayor 5, Madrid.",
    "Nothing here.",
    "Passport X1234567; see https://example.org/u/jdoe?id=7, driver's licence D123-4567-8901.",
]
WAYS = ("none", "simple", "first", "average", "max")
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Translate to German: good morning.",
    "What is 7 plus 5?",
    "Name three colours.",
]
FORMS = (
    "What is {}?",
    "Write one sentence about {}.",
    "Name three facts about {}.",
    "Explain {} to a child.",
    "Is there anything funny about {}?",
)
SUBJECTS = ("the sea", "gravity", "bread", "Berlin", "a violin", "photosynthesis", "chess", "the moon", "rain", "Python")
NEW = 48  # tokens of an answer
BEGUN = 8  # tokens that an answer begins with


def _variants(bundle: Path) -> list[str]:
    return list(json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["variants"])


@click.group()
def main() -> None:
    """One command for each task."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
def vectors(folder: Path, bundle: Path) -> None:
    """Vectors by every option of `encode`, against SentenceTransformer's."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu")
    click.echo("| variant | options | largest difference | least cosine |\n| --- | --- | --- | --- |")
    for precision in _variants(bundle):
        model = load(bundle, precision=precision)
        for wishes in WISHES:
            got, wanted = model.encode(TEXTS, **wishes), theirs.encode(TEXTS, **wishes)
            cosines = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
            said = ", ".join(f"{key}={value!r}" for key, value in wishes.items())
            click.echo(f"| {precision} | {said} | {np.abs(got - wanted).max():.1e} | {cosines.min():.5f} |")


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
def entities(folder: Path, bundle: Path) -> None:
    """Entities by every way to join them, against transformers' pipeline around ONNX Runtime on the folder's own file."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    original = _onnx_classifier(folder)
    click.echo("| variant | aggregation | equal entities | scores apart |\n| --- | --- | --- | --- |")
    for precision in _variants(bundle):
        model = load(bundle, precision=precision)
        for way in WAYS:
            pipeline = transformers.TokenClassificationPipeline(model=original, tokenizer=tokenizer, aggregation_strategy=way)
            scores: list[float] = []
            count = 0
            for text in NAMED:
                wanted = {
                    (one.get("entity_group", one.get("entity")), one["start"], one["end"]): float(one["score"]) for one in pipeline(text)
                }
                got = {(one.label, one.start, one.end): one.score for one in model.entities([text], aggregation=way)[0]}
                count += len(wanted.keys() | got.keys())
                scores += [abs(wanted[key] - got[key]) for key in wanted.keys() & got.keys()]
            click.echo(f"| {precision} | {way} | {len(scores)} of {count} | {max(scores):.1e} |")


def _onnx_classifier(folder: Path) -> Any:
    """transformers' class for a pipeline, whose answers are those of the folder's ONNX file."""
    import onnxruntime
    import torch
    import transformers
    from transformers.modeling_outputs import TokenClassifierOutput

    session = onnxruntime.InferenceSession(str(next(folder.glob("onnx/model*.onnx"))))
    names = {value.name for value in session.get_inputs()}

    class BertForTokenClassification(transformers.BertPreTrainedModel):  # the pipeline asks for the class's name
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.nothing = torch.nn.Linear(1, 1)

        def forward(self, **inputs: Any) -> Any:
            (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in names})
            return TokenClassifierOutput(logits=torch.from_numpy(logits))

    return BertForTokenClassification(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--many", is_flag=True, help="Ask 50 questions in the place of five.")
@click.option("--llama", type=click.Path(exists=True, path_type=Path), help="Python of an environment with llama-cpp-python")
def chat(folder: Path, bundle: Path, many: bool, llama: Path | None) -> None:
    """Greedy answers to questions, against transformers' `generate` with the folder's template, by token."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    original = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    questions = [form.format(subject) for form in FORMS for subject in SUBJECTS] if many else QUESTIONS
    ends = original.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    prompts, wanted = [], []
    for question in questions:
        talk = [{"role": "user", "content": question}]
        if tokenizer.chat_template:
            ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
        else:
            ids = tokenizer(question).input_ids
        with torch.no_grad():
            row = original.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, repetition_penalty=1.0)
        prompts.append(list(ids))
        wanted.append(_until(row[0, len(ids) :].tolist(), ends))
    click.echo(
        f"| variant | equal answers | the same {BEGUN} tokens first | equal first tokens | first answer |\n| --- | --- | --- | --- | --- |"
    )
    for precision in _variants(bundle):
        model = load(bundle, precision=precision)
        asked = [[{"role": "user", "content": question}] for question in questions] if tokenizer.chat_template else questions
        answer = model.chat if tokenizer.chat_template else model.generate
        got = [answer(one, max_new_tokens=NEW, temperature=0, repetition_penalty=1.0)[0] for one in asked]
        _tell(precision, [list(one.tokens) for one in got], wanted, got[0].text)
    if llama is not None:
        for kind, rows in _of_llama(folder, llama, prompts):
            found = [_until(row, ends) for row in rows]
            _tell(f"llama.cpp {kind}", found, wanted, tokenizer.decode(found[0]))


def _until(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return list(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])


def _tell(name: str, got: list[list[int]], wanted: list[list[int]], text: str) -> None:
    pairs = list(zip(got, wanted, strict=True))
    first = sum(next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair))) for pair in pairs)
    equal = sum(a == b for a, b in pairs)
    begun = sum(a[:BEGUN] == b[:BEGUN] for a, b in pairs)
    shown = text.replace("\n", " ")[:80]
    click.echo(f"| {name} | {equal} of {len(pairs)} | {begun} | {first} of {sum(len(b) for _, b in pairs)} | {shown} |")


def _of_llama(folder: Path, python: Path, prompts: list[list[int]]) -> Any:
    """Kind of file, and llama.cpp's greedy tokens after each prompt, one prompt after the other."""
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as made:
        files = Path(made) / "files"
        subprocess.run([python.absolute(), "-m", "peers.llama_cpp", folder.resolve(), files], check=True, cwd=HERE)
        for kind in LLAMA:
            options = {"folder": str(files), "precision": kind, "threads": os.cpu_count()}
            spec = {"kind": "class", "class": "peers.llama_cpp:Peer", "options": options}
            side = Client(f"llama.cpp {kind}", spec, timeout=3600, paths=[str(HERE)], python=str(python.absolute()))
            try:
                side.load()
                answers = [side.call("generate", [ids], max_new_tokens=NEW, min_new_tokens=NEW)[0][0]["tokens"] for ids in prompts]
            finally:
                side.close()
            yield kind, answers


if __name__ == "__main__":
    main()
