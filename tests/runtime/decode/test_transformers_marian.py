"""An exported Marian model answers a ragged batch as the original's `generate` does, by its own settings and by others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MarianMTModel

from onnxport.runtime import load

from .test_transformers_settings import NAMES

PAD, EOS = 96, 0
SETTINGS: dict[str, dict[str, Any]] = {
    "its own": {},
    "greedy": {"beam": 1},
    "6 beams, early": {"beam": 6, "early_stopping": True, "length_penalty": 1.5},
    "3 beams, never": {"beam": 3, "early_stopping": "never", "length_penalty": -1.0},
    "as BART for summaries": {
        "bad_words": None, "renormalize": None, "forced_bos_id": 3, "no_repeat_ngram": 2, "min_new_tokens": 6, "length_penalty": 2.0,
        "early_stopping": True,
    },
    "greedy as BART": {"beam": 1, "bad_words": None, "renormalize": None, "forced_bos_id": 3, "no_repeat_ngram": 2, "min_new_tokens": 6},
    "penalized": {"beam": 2, "repetition_penalty": 1.8},
    "greedy, penalized": {"beam": 1, "repetition_penalty": 1.8, "suppressed": [20, 40, 60, 80], "begin_suppressed": [EOS]},
    "words": {"beam": 5, "bad_words": [[PAD], [11], [30, 31]], "begin_suppressed": [EOS, 5], "eos_id": [EOS, 50]},
}  # fmt: skip


@pytest.fixture(scope="module")
def original(marian: Path) -> MarianMTModel:
    return MarianMTModel.from_pretrained(marian / "source").eval()


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[*rng.integers(1, PAD, length).tolist(), EOS] for length in (3, 9, 1, 6, 12, 2)]


def expected(original: MarianMTModel, sources: list[list[int]], settings: dict[str, Any]) -> list[tuple[list[int], float | None]]:
    """New tokens without the end, and with beams the score, of every source."""
    longest = max(map(len, sources))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in sources])
    options = {NAMES[name]: value for name, value in settings.items() if value is not None}
    given = original.generation_config.to_dict() | options | {NAMES[name]: None for name, value in settings.items() if value is None}
    before = original.generation_config
    original.generation_config = type(before).from_dict(given)
    out = original.generate(ids, attention_mask=(ids != PAD).long(), return_dict_in_generate=True, output_scores=True)
    original.generation_config = before
    ends = settings.get("eos_id", EOS)
    ends = ends if isinstance(ends, list) else [ends]
    answers = []
    for i, row in enumerate(out.sequences.tolist()):
        end = next((at for at, token in enumerate(row) if token in ends), len(row))
        answers.append((row[1:end], None if getattr(out, "sequences_scores", None) is None else float(out.sequences_scores[i])))
    return answers


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_generate(marian: Path, original: MarianMTModel, sources: list[list[int]], tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(marian / "bundle", tmp_path / "copy"))
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["generation"] |= SETTINGS[name]
    (path / "bundle.json").write_text(json.dumps(manifest))
    with load(path, threads=1) as model:
        found = model.generate(sources)
    wanted = expected(original, sources, SETTINGS[name])
    assert [one.tokens for one in found] == [tokens for tokens, _ in wanted]
    for one, (_, score) in zip(found, wanted, strict=True):
        assert score is None or one.score == pytest.approx(score, rel=1e-6, abs=1e-4)
    assert len({len(one.tokens) for one in found}) > 1  # ends come at several lengths
    if SETTINGS[name]:
        assert [tokens for tokens, _ in wanted] != [tokens for tokens, _ in expected(original, sources, {})]
