"""Answers are those of transformers' `generate` with the same generation config, tokens and scores, for every setting of the search."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from onnxport.runtime import Generation, Model, load
from support import tiny_bundles as tiny
from support import tiny_transformers as theirs

PROMPTS = [[1, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14], [30, 31], [12, 13, 14, 15, 16], [25]]
NEW = 10
NAMES = {  # ours in a bundle → transformers'
    "beam": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "forced_bos_id": "forced_bos_token_id",
    "forced_eos_id": "forced_eos_token_id",
    "suppressed": "suppress_tokens",
    "begin_suppressed": "begin_suppress_tokens",
    "bad_words": "bad_words_ids",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "min_new_tokens": "min_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "renormalize": "renormalize_logits",
    "eos_id": "eos_token_id",
}
ENDS = [tiny.EOS, 21]
MARIAN = {"bad_words": [[35]], "renormalize": True, "forced_eos_id": tiny.EOS}
SETTINGS: dict[str, dict[str, Any]] = {  # without its first entry each gives other answers
    "several ends": {"eos_id": ENDS},
    "several ends, early": {"eos_id": ENDS, "early_stopping": True, "min_new_tokens": 2},
    "forced begin": {"forced_bos_id": 9},
    "forced begin that ends": {"forced_bos_id": tiny.EOS},
    "forced end": {"forced_eos_id": tiny.EOS},
    "forced ends, renormalized": {"forced_eos_id": ENDS, "eos_id": ENDS, "renormalize": True},
    "forced begin and end in two tokens": {"forced_bos_id": 9, "forced_eos_id": tiny.EOS, "max_new_tokens": 2},
    "an only token, forced twice": {"forced_eos_id": tiny.EOS, "forced_bos_id": 9, "max_new_tokens": 1},
    "suppressed": {"suppressed": [35, 27, 28, 36, 17]},
    "suppressed, renormalized": {"suppressed": [35, 27, 28, 36, 17], "renormalize": True},
    "many suppressed, renormalized": {"suppressed": list(range(1, 40, 2)), "renormalize": True},
    "begin suppressed": {"begin_suppressed": [35, 27, 28, 36, 17, 18]},
    "begin suppressed after a forced begin": {"forced_bos_id": 9, "begin_suppressed": [35, 27, 28, 36, 17, 9], "renormalize": True},
    "bad words": {"bad_words": [[35], [27, 28], [17, 17], [36, 5, 36], [tiny.EOS]]},
    "bad words, renormalized": {"bad_words": [[35], [27, 28], [17, 17], [36, 5, 36]], "renormalize": True},
    "no n-gram of 1 twice": {"no_repeat_ngram": 1},
    "no n-gram of 2 twice": {"no_repeat_ngram": 2, "min_new_tokens": NEW},
    "no n-gram of 3 twice, renormalized": {"no_repeat_ngram": 3, "renormalize": True, "min_new_tokens": NEW},
    "least": {"min_new_tokens": 5},
    "least, renormalized": {"min_new_tokens": 5, "renormalize": True},
    "exactly": {"min_new_tokens": NEW, "renormalize": True, "bad_words": [[35]]},
    "penalty": {"repetition_penalty": 1.6},
    "penalty, renormalized": {"repetition_penalty": 1.6, "renormalize": True},
    "reward": {"repetition_penalty": 0.7},
    "as Marian": MARIAN,
    "as Marian, long": MARIAN | {"length_penalty": 2.0, "early_stopping": True, "min_new_tokens": 4},
    "everything": {
        "forced_bos_id": 9, "forced_eos_id": tiny.EOS, "suppressed": [35], "begin_suppressed": [27], "bad_words": [[28], [17, 17]],
        "no_repeat_ngram": 3, "min_new_tokens": 3, "repetition_penalty": 1.2, "renormalize": True, "length_penalty": 0.7, "eos_id": ENDS,
    },
}  # fmt: skip
BEAMS: dict[str, dict[str, Any]] = {
    f"{early}, {penalty}": {"early_stopping": early, "length_penalty": penalty}
    for early in (False, True, "never")
    for penalty in (-1.5, 0.0, 0.6, 1.0, 2.5)
}
Made = Callable[[dict[str, Any]], Model]


@pytest.fixture(scope="module")
def original() -> theirs.TheirModel:
    made = tiny.TinyModel("causal", seed=4, sharpness=1.0)
    made.w["head"][:, tiny.EOS] *= 2  # so that ends come early and late
    return theirs.TheirModel(made)


@pytest.fixture(scope="module")
def made(original: theirs.TheirModel, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of the same model with other generation settings."""
    folder = tmp_path_factory.mktemp("semantics")
    whole = tiny.write_bundle(folder / "whole", original.model)

    def make(settings: dict[str, Any]) -> Model:
        path = Path(shutil.copytree(whole, folder / "copy", dirs_exist_ok=True))
        manifest = json.loads((path / "bundle.json").read_text())
        manifest["generation"] |= settings
        (path / "bundle.json").write_text(json.dumps(manifest))
        return load(path, threads=1)

    return make


Answers = list[tuple[list[int], float]]


def expected(original: theirs.TheirModel, prompt: list[int], settings: dict[str, Any]) -> Answers:
    """Every answer without its end token, and its score, best first."""
    settings = {"max_new_tokens": NEW, "eos_id": tiny.EOS} | settings
    beams, ends = settings.get("beam", 1), settings["eos_id"]
    options = {NAMES[name]: value for name, value in settings.items()}
    out = theirs.generate(original, prompt, num_return_sequences=beams, **options)
    answers = []
    for i, row in enumerate(out.sequences.tolist()):
        tokens = row[len(prompt) :]
        end = next((at + 1 for at, token in enumerate(tokens) if token in (ends if isinstance(ends, list) else [ends])), len(tokens))
        kept = [token for token in tokens[:end] if token not in (ends if isinstance(ends, list) else [ends])]
        score = float(out.sequences_scores[i]) if beams > 1 else greedy_score(out, prompt, tokens[:end], settings)
        if score > -1e8:  # a place that no hypothesis took
            answers.append((kept, score))
    return answers


def greedy_score(out: Any, prompt: list[int], tokens: list[int], settings: dict[str, Any]) -> float:
    """The sum of log-probabilities: of the processed scores where they are renormalized, else of the (penalized) logits."""
    total, penalty = 0.0, settings.get("repetition_penalty", 1.0)
    for step, token in enumerate(tokens):
        scores, logits = out.scores[step][0], out.logits[step][0].clone()
        for seen in {*prompt, *tokens[:step]}:
            logits[seen] *= penalty if logits[seen] < 0 else 1 / penalty
        forced = bool((scores == 0).any()) and bool((scores[scores != 0] == -torch.inf).all())
        renormalized = bool(settings.get("renormalize"))
        total += float(scores[token]) if renormalized or forced else float(torch.log_softmax(logits.double(), -1)[token])
    return total


def answers(result: Generation) -> Answers:
    return [(one.tokens, one.score) for one in (result, *result.alternatives)]


def same(found: Answers, wanted: Answers) -> bool:
    return [t for t, _ in found] == [t for t, _ in wanted] and [s for _, s in found] == pytest.approx([s for _, s in wanted], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_models_own_settings(made: Made, original: theirs.TheirModel, name: str, beam: int) -> None:
    settings = {"max_new_tokens": NEW, "beam": beam} | SETTINGS[name]
    with made(settings) as model:
        found = [answers(one) for one in model.generate(PROMPTS, n_best=beam)]
    rest, changed = dict(list(SETTINGS[name].items())[1:]), False
    for prompt, ours in zip(PROMPTS, found, strict=True):
        wanted = expected(original, prompt, settings)
        assert same(ours, wanted), (ours, wanted)
        changed = changed or not same(ours, expected(original, prompt, {"beam": beam} | rest))
    assert changed, "the setting changes nothing here, so the test cannot tell whether it was obeyed"


@pytest.mark.parametrize("name", BEAMS)
def test_the_ends_of_beams(made: Made, original: theirs.TheirModel, name: str) -> None:
    settings = {"max_new_tokens": NEW, "beam": 3} | BEAMS[name]
    with made(settings) as model:
        own = model.generate(PROMPTS, n_best=3)
    with made({"max_new_tokens": NEW}) as model:
        assert own == model.generate(PROMPTS, beam=3, n_best=3, **BEAMS[name])
    for prompt, one in zip(PROMPTS, own, strict=True):
        wanted = expected(original, prompt, settings)
        assert same(answers(one), wanted), (answers(one), wanted)


def test_the_callers_word_goes_before_the_models(made: Made, original: theirs.TheirModel) -> None:
    own = {"beam": 4, "length_penalty": 2.0, "no_repeat_ngram": 2, "min_new_tokens": 6, "repetition_penalty": 1.5, "max_new_tokens": NEW}
    neutral = {"length_penalty": 1.0, "no_repeat_ngram": 0, "min_new_tokens": 0, "repetition_penalty": 1.0}
    with made(own) as model:
        for beam in (1, 3):
            for prompt, one in zip(PROMPTS, model.generate(PROMPTS, beam=beam, n_best=beam, **neutral), strict=True):
                assert same(answers(one), expected(original, prompt, {"beam": beam}))
        greedy = [one.tokens for one in model.generate(PROMPTS, beam=1)]
        assert greedy == [one.tokens for one in model.generate(PROMPTS, temperature=0)]
        assert greedy != [one.tokens for one in model.generate(PROMPTS)]
        assert max(len(one.tokens) for one in model.generate(PROMPTS, max_new_tokens=3)) == 3  # the model's own six give way


def test_constraints_come_before_temperature_and_filters(made: Made, original: theirs.TheirModel) -> None:
    draws, suppressed = 4000, [35, 20, 27]
    settings = {"suppressed": suppressed, "no_repeat_ngram": 1, "temperature": 1.5, "top_k": 9, "top_p": 0.8, "max_new_tokens": 1}
    with made(settings) as model:
        drawn = [(one.tokens or [tiny.EOS])[0] for one in model.generate([PROMPTS[0]] * draws, seed=5, batch_size=1000)]
    scores = original(torch.tensor([PROMPTS[0]])).logits[:, -1]
    for processor in (
        logits_process.NoRepeatNGramLogitsProcessor(1),
        logits_process.SuppressTokensLogitsProcessor(suppressed),
        logits_process.TemperatureLogitsWarper(1.5),
        logits_process.TopKLogitsWarper(9),
        logits_process.TopPLogitsWarper(0.8),
    ):
        scores = processor(torch.tensor([PROMPTS[0]]), scores)
    wanted = torch.softmax(scores[0], -1).double().numpy() * draws
    found = np.bincount(drawn, minlength=tiny.VOCABULARY)
    kept = wanted > 0
    assert 3 <= kept.sum() <= 9
    assert not found[~kept].any()
    statistic, freedom = ((found - wanted)[kept] ** 2 / wanted[kept]).sum(), kept.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)  # beyond five standard deviations of a chi-square
