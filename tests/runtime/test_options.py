"""What a caller leaves open is the model's, and what neither says is neutral; a manifest's settings are checked as a caller's are."""

from typing import Any

import pytest

from onnxport.errors import BundleError, UsageError
from onnxport.runtime.bundle.manifest import generation
from onnxport.runtime.options import Options, Search, SearchConfig
from support import tiny_bundles as tiny

SAMPLING = SearchConfig(temperature=0.6, top_k=50, top_p=0.9)
BEAMS = SearchConfig(beam=4, length_penalty=0.5, early_stopping="never", min_new_tokens=3, no_repeat_ngram=2, repetition_penalty=1.2)


def test_neutral() -> None:
    search = Options().resolve(SearchConfig())
    assert (search.beam, search.min_new_tokens, search.sampling) == (1, 0, None)
    assert (search.length_penalty, search.early_stopping, search.repetition_penalty, search.no_repeat_ngram) == (1.0, False, 1.0, 0)


def test_the_models_own() -> None:
    search = Options().resolve(BEAMS)
    for name in ("beam", "length_penalty", "early_stopping", "min_new_tokens", "no_repeat_ngram", "repetition_penalty"):
        assert getattr(search, name) == getattr(BEAMS, name)


def test_the_callers_before_the_models() -> None:
    given: dict[str, Any] = {
        "beam": 2, "length_penalty": 0.0, "early_stopping": False, "min_new_tokens": 0, "no_repeat_ngram": 0, "repetition_penalty": 1.0,
    }  # fmt: skip
    search = Options(**given).resolve(BEAMS)
    assert {name: getattr(search, name) for name in given} == given


def drawn(search: Search) -> tuple[float, int, float] | None:
    return None if search.sampling is None else (search.sampling.temperature, search.sampling.top_k, search.sampling.top_p)


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        ({}, SAMPLING, (0.6, 50, 0.9)),
        ({"temperature": 1.5}, SAMPLING, (1.5, 50, 0.9)),
        ({"top_k": 0, "top_p": 1.0}, SAMPLING, (0.6, 0, 1.0)),
        ({"beam": 1}, SAMPLING, (0.6, 50, 0.9)),
        ({"beam": 3}, SAMPLING, None),
        ({"temperature": 0}, SAMPLING, None),
        ({"top_k": 5}, BEAMS, (1.0, 5, 1.0)),
        ({"temperature": 0}, BEAMS, None),
        ({"top_k": 0}, BEAMS, None),
    ],
)
def test_sampling(given: dict[str, Any], own: SearchConfig, expected: tuple[float, int, float] | None) -> None:
    assert drawn(Options(**given).resolve(own)) == expected


@pytest.mark.parametrize(
    ("given", "beam"), [({}, 4), ({"beam": 1}, 1), ({"temperature": 0.7}, 1), ({"temperature": 0}, 1), ({"top_k": 0}, 4)]
)
def test_beams(given: dict[str, Any], beam: int) -> None:
    assert Options(**given).resolve(BEAMS).beam == beam


def test_as_many_answers_as_beams() -> None:
    assert Options(n_best=4).resolve(BEAMS).n_best == 4
    with pytest.raises(UsageError, match=r"n_best is 2, expected at most beam \(1\)"):
        Options(n_best=2).resolve(SearchConfig())


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_bad_n_grams(value: Any) -> None:
    with pytest.raises(UsageError, match="no_repeat_ngram is"):
        Options(no_repeat_ngram=value)


def read(**settings: Any) -> SearchConfig:
    config = generation(tiny.generation("seq2seq") | settings)
    assert config is not None
    return config.search


def test_a_manifest_without_settings_is_neutral() -> None:
    names = (
        "beam",
        "length_penalty",
        "early_stopping",
        "bad_words",
        "forced_bos_id",
        "forced_eos_id",
        "suppressed",
        "temperature",
        "renormalize",
    )
    assert read() == read(**dict.fromkeys(names)) == SearchConfig()


def test_a_manifest_with_settings() -> None:
    found = read(
        beam=6, length_penalty=2, early_stopping="never", forced_bos_id=0, forced_eos_id=[2, 3], suppressed=[4], begin_suppressed=[5, 6],
        bad_words=[[7], [8, 9]], no_repeat_ngram=3, min_new_tokens=1, max_new_tokens=9, repetition_penalty=1.1, renormalize=True,
    )  # fmt: skip
    assert found == SearchConfig(
        beam=6, length_penalty=2, early_stopping="never", forced_bos_id=0, forced_eos_ids=(2, 3), suppressed=(4,), begin_suppressed=(5, 6),
        bad_words=((7,), (8, 9)), no_repeat_ngram=3, min_new_tokens=1, repetition_penalty=1.1, renormalize=True,
    )  # fmt: skip
    assert read(forced_eos_id=2).forced_eos_ids == (2,)
    assert read(temperature=0.7, top_k=50, top_p=1) == SearchConfig(temperature=0.7, top_k=50, top_p=1)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 2.0}, "generation.beam is float"),
        ({"beam": 2, "temperature": 0.5}, "choose beams or sampling"),
        ({"length_penalty": "2"}, "generation.length_penalty is str"),
        ({"length_penalty": 11}, "length_penalty is 11"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"renormalize": 1}, "generation.renormalize is int"),
        ({"suppressed": ["4"]}, "generation.suppressed must hold integers"),
        ({"begin_suppressed": [True]}, "generation.begin_suppressed must hold integers"),
        ({"bad_words": [4]}, "generation.bad_words must hold lists"),
        ({"bad_words": [[]]}, "generation.bad_words must hold lists"),
        ({"forced_bos_id": [1]}, "generation.forced_bos_id is list"),
        ({"forced_eos_id": tiny.VOCABULARY}, f"token id {tiny.VOCABULARY} outside"),
        ({"bad_words": [[4, tiny.VOCABULARY]]}, f"token id {tiny.VOCABULARY} outside"),
        ({"suppressed": [-1]}, "token id -1 outside"),
    ],
)
def test_bad_settings_of_a_manifest(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(**settings)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
