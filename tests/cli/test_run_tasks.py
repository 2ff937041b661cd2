"""`run` for embedding, classification, questions, chats and long texts: lines in, lines or JSON out."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.cli import run
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from support import tiny_encoder as tiny
from support.commands import assert_refused, invoke

QUESTION = '{"question": "Who sat?", "context": "The cat sat on a mat."}'


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    labels = {"labels": ["no", "yes"]}
    return {
        "embedding": tiny.write(root / "embedding", "embedding", tiny.table(3), max_length=16),
        "classification": tiny.write(root / "single", "classification", tiny.table(2), max_length=16, **labels),
        "multi": tiny.write(root / "multi", "classification", tiny.table(2), max_length=16, problem="multi", **labels),
        "question-answering": tiny.write(root / "qa", "question-answering", tiny.table(2), max_length=32),
    }


def fed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Puts lines on standard input, which `run` reads by its descriptor."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    monkeypatch.setattr(run, "standard_input", lambda: reading)


def results(*arguments: Any) -> list[dict[str, Any]]:
    done = invoke("run", *arguments, "--json")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    found: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return found


def test_embedding(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundles["embedding"], threads=1) as model:
        wanted = model.encode(["a b", "c"], stride=3)
    found = results(bundles["embedding"], "a b", "c", " ", "--stride", "3")
    np.testing.assert_array_equal(np.array([one["embedding"] for one in found[:2]], np.float32), wanted)
    assert found[2] == {"embedding": []}
    fed(monkeypatch, "a b\n\nc\n")
    lines = invoke("run", bundles["embedding"], "--stride", "3").stdout.split("\n")
    np.testing.assert_allclose([[float(x) for x in lines[i].split()] for i in (0, 2)], wanted, rtol=1e-4)
    assert lines[1] == ""


def test_classification(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = '{"text": "a b", "pair": "c"}'
    with load(bundles["classification"], threads=1) as model:
        wanted = model.classify(["a b", ("a b", "c"), "{not json"])
    found = results(bundles["classification"], "a b", pair, "{not json", "")
    assert found[:3] == [{"label": one.label, "scores": one.scores} for one in wanted]
    assert found[3] == {"label": None, "scores": {}}
    fed(monkeypatch, f"a b\n\n{pair}\n")
    done = invoke("run", bundles["classification"])
    assert done.stdout.split("\n") == [
        *(f"{wanted[0].label}\t{wanted[0].scores[wanted[0].label]:.4f}",),
        "",
        *(f"{wanted[1].label}\t{wanted[1].scores[wanted[1].label]:.4f}",),
        "",
    ]


def test_several_labels(bundles: dict[str, Path]) -> None:
    (found,) = results(bundles["multi"], "a b c d e")
    assert set(found["labels"]) == {name for name, share in found["scores"].items() if share >= 0.5}
    done = invoke("run", bundles["multi"], "a b c d e")
    assert done.stdout == "\t".join(f"{name}\t{found['scores'][name]:.4f}" for name in found["labels"]) + "\n"


def test_questions(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundles["question-answering"], threads=1) as model:
        (wanted,) = model.answer(question="Who sat?", context="The cat sat on a mat.", n_best=3)
    (found,) = results(bundles["question-answering"], QUESTION, "--n-best", "3")
    assert (found["answer"], found["start"], found["end"], found["score"]) == (wanted.answer, wanted.start, wanted.end, wanted.score)
    assert [one["answer"] for one in found["alternatives"]] == [one.answer for one in wanted.alternatives]
    assert set(results(bundles["question-answering"], QUESTION)[0]) == {"answer", "start", "end", "score", "no_answer_score"}
    fed(monkeypatch, QUESTION + "\n\n" + QUESTION + "\n")
    assert invoke("run", bundles["question-answering"]).stdout == f"{wanted.answer}\n\n{wanted.answer}\n"
    fed(monkeypatch, QUESTION + "\n\n")
    asked, blank = json.loads(invoke("run", bundles["question-answering"], "--json").stdout)["results"]
    assert asked.keys() == blank.keys() and blank["no_answer_score"] == blank["score"] == 0.0


@pytest.mark.parametrize(
    ("task", "line", "part"),
    [
        ("question-answering", "Who?", "is no JSON object"),
        ("question-answering", '{"question": "Who?"}', "no 'context'"),
        ("question-answering", '{"question": "Who?", "context": 3}', "context is int"),
        ("question-answering", '{"question": "Who?", "context": "a", "answer": ""}', "has 'answer'"),
        ("question-answering", '{"question": "' + "why " * 20 + '", "context": "a"}', "leaves no room"),
        ("question-answering", '{"question": "Who?", "context": ""}', "empty"),
        ("classification", '{"pair": "b"}', "no 'text'"),
        ("classification", '{"text": "a", "pair": null}', "pair is NoneType"),
    ],
)
def test_a_refused_line_is_named(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, task: str, line: str, part: str) -> None:
    good = QUESTION if task == "question-answering" else "a"
    fed(monkeypatch, f"{good}\n{good}\n{line}\n")
    done = invoke("run", bundles[task])
    assert done.exit_code == 4
    assert done.stdout.count("\n") == 2  # the lines before it are answered
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("onnxport: line 3 of standard input: ")
    assert part in last


@pytest.mark.parametrize(
    ("task", "options", "parts"),
    [
        ("embedding", ["--beam", "2"], ["--beam", "embedding"]),
        ("classification", ["--n-best", "2"], ["--n-best", "classification"]),
        ("classification", ["--chat"], ["--chat", "classification"]),
        ("question-answering", ["--stream"], ["--stream", "question-answering"]),
        ("embedding", ["--long", "segments"], ["--long", "embedding"]),
        ("embedding", ["--no-answer"], ["--no-answer", "embedding"]),
    ],
)
def test_options_of_other_tasks_are_refused(bundles: dict[str, Path], task: str, options: list[str], parts: list[str]) -> None:
    assert_refused(invoke("run", bundles[task], "a", *options), 2, *parts)


def test_a_long_text_keeps_its_lines(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a b c. D e!\n\n" + "f g h i j k l " * 8 + "\n"
    with load(bundle.path, threads=1) as model:
        (wanted,) = model.generate(text, long="segments", max_new_tokens=4)
    assert wanted.segments > 2
    fed(monkeypatch, text)
    done = invoke("run", bundle.path, "--long", "segments", "--max-new-tokens", "4")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == (wanted.text or "").split()
    assert "\n\n" in done.stdout
    (found,) = results(bundle.path, text, "--long", "segments", "--max-new-tokens", "4")
    assert (found["segments"], found["text"]) == (wanted.segments, wanted.text)
    assert_refused(invoke("run", bundle.path, "a", "--stride", "3"), 2, "--stride", "translation")
    assert_refused(invoke("run", bundle.path, "a", "--stream", "--long", "segments"), 2, "--stream")


def test_a_chat(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    path = tmp_path / "chat"
    shutil.copytree(bundle.path, path)
    template = b"{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
    (path / "chat_template.jinja").write_bytes(template)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"]["chat_template.jinja"] = {"sha256": hashlib.sha256(template).hexdigest(), "bytes": len(template)}
    manifest["chat"] = {"template": "chat_template.jinja", "tokens": {}}
    (path / "bundle.json").write_text(json.dumps(manifest))
    talk = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    with load(path, threads=1) as model:
        one, three = model.chat([talk[:1], talk], max_new_tokens=4)
    fed(monkeypatch, f"b\n\n{json.dumps(talk)}\n{json.dumps({'messages': talk})}\n")
    done = invoke("run", path, "--chat", "--max-new-tokens", "4")
    assert done.stdout == f"{one.text}\n\n{three.text}\n{three.text}\n", done.output
    assert invoke("run", path, "--chat", "--stream", "--max-new-tokens", "4", "b").stdout == f"{one.text}\n"
    assert_refused(invoke("run", path, "--chat", '{"role": "user"}'), 4, "messages")
    assert_refused(invoke("run", bundle.path, "--chat", "b"), 2, "no chat template")
