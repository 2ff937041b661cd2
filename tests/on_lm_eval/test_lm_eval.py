"""A bundle in the lm-evaluation-harness beside the harness's own model of transformers with the same weights: `make test-lm-eval`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from onnxport.build.stages import build
from onnxport.errors import UsageError
from onnxport.integrations.lm_eval import OnnxportLM
from support import causal_folders, tiny_encoder
from support import task_folders as folders
from support.paths import ROOT

TASKS = ROOT / "examples" / "lm-eval"
CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
LENGTH = 64  # the longest prompts are cut


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OnnxportLM]:
    """The harness's model of transformers, and ours."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    causal_folders.write(
        folder, "llama", vocab_size=folders.BYTES, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    folders.save_tokenizer(folder, folders.byte_level(), folders.ROBERTA)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT, "model_max_length": LENGTH}))
    build(folder, folder.with_name("bundle"), precision=("fp32",))
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return theirs, OnnxportLM(folder.with_name("bundle"), batch_size="auto", threads="1")


def evaluated(model: Any, tasks: list[str], monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    monkeypatch.chdir(TASKS)  # the tasks name their data by paths from here
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, limit=8, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("options", [{}, {"apply_chat_template": True}], ids=["plain", "chat"])
@pytest.mark.parametrize("task", ["capitals", "capitals_read", "capitals_written"])
def test_figures_are_those_of_the_original(
    models: tuple[Any, OnnxportLM], task: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, found = (evaluated(model, [task], monkeypatch, **options) for model in models)
    for one, other in zip(expected["samples"][task], found["samples"][task], strict=True):
        assert one["arguments"] == other["arguments"]
        for (theirs,), (ours,) in zip(one["resps"], other["resps"], strict=True):
            if task == "capitals_written":
                assert ours == theirs
            elif task == "capitals":
                assert ours[0] == pytest.approx(theirs[0], rel=1e-4) and ours[1] == theirs[1]
            else:
                assert ours == pytest.approx(theirs, rel=1e-4)
    for name, value in expected["results"][task].items():
        if isinstance(value, float):
            assert found["results"][task][name] == pytest.approx(value, rel=1e-3), name


def test_continuations_without_a_context_and_longer_than_the_model(models: tuple[Any, OnnxportLM]) -> None:
    from lm_eval.api.instance import Instance

    long = "the cat sat on a mat and the dog lay by the door. " * 6
    pairs = [("", "the cat"), ("the ", " cat"), (long, " a mat"), ("the cat", long[:60])]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for one, other in zip(*(model.loglikelihood(requests) for model in models), strict=True):
        assert other[0] == pytest.approx(one[0], rel=1e-4) and other[1] == one[1]
    texts = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate((long, "the cat"))]
    expected, found = (model.loglikelihood_rolling(texts) for model in models)
    assert found == pytest.approx(expected, rel=1e-4)


def test_searches(models: tuple[Any, OnnxportLM]) -> None:
    from lm_eval.api.instance import Instance

    for options in (
        {"until": ["a"], "max_gen_toks": 12},
        {"max_gen_toks": 5, "repetition_penalty": 1.5},
        {"num_beams": 3, "max_gen_toks": 6},
    ):
        requests = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(("the cat", "x"))]
        expected, found = (model.generate_until(requests) for model in models)
        assert found == expected
    sampled = [Instance("generate_until", {}, ("x", {"do_sample": True, "temperature": 0.8, "max_gen_toks": 4}), 0)]
    assert len(models[1].generate_until(sampled)) == 1
    with pytest.raises(UsageError, match="generation_kwargs has typical_p"):
        models[1].generate_until([Instance("generate_until", {}, ("x", {"typical_p": 0.5}), 0)])


def test_the_harness_knows_it_by_name(models: tuple[Any, OnnxportLM], monkeypatch: pytest.MonkeyPatch) -> None:
    path = models[1].model.bundle.path
    found = evaluated("onnxport", ["capitals"], monkeypatch, model_args=f"path={path},threads=1", batch_size=4, device="cpu")
    assert found["config"]["model"] == "onnxport" and len(found["samples"]["capitals"]) == 8
    assert re.fullmatch("[0-9a-f]{64}", models[1].tokenizer_name)


def test_what_cannot_be_evaluated_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="path is missing"):
        OnnxportLM()
    bundle = tiny_encoder.write(tmp_path / "bundle", "classification", tiny_encoder.table(3))
    with pytest.raises(UsageError, match="expected text-generation"):
        OnnxportLM(bundle)
