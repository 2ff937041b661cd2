"""The rules of a step against transformers' own logits processors, on random histories."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from onnxport.runtime.bundle.manifest import GenerationConfig
from onnxport.runtime.decode.batch import Request
from onnxport.runtime.decode.constraints import Constraints, Rules
from onnxport.runtime.options import Options, SearchConfig

VOCABULARY, START, EOS, OTHER_EOS = 11, 10, 2, 5
ROWS = 6
SOURCE = [3, 4, 1, 3, 2, 2, 0, 5]


def config(own: SearchConfig, eos: tuple[int, ...] = (EOS,)) -> GenerationConfig:
    return GenerationConfig("seq2seq", 1, 1, 8, VOCABULARY, None, None, 0, None, eos, START, None, own)


def constraints(own: SearchConfig, eos: tuple[int, ...] = (EOS,), **options: Any) -> Constraints:
    return Constraints(config(own, eos), Options(**options).resolve(own))


def requests(limit: int = 50, rows: int = ROWS, prefix: Sequence[int] = (START,)) -> list[Request]:
    return [Request(i, SOURCE, list(prefix), limit) for i in range(rows)]


def applied(rules: Rules, scores: np.ndarray) -> np.ndarray:
    """What the rules make of scores, by their description alone."""
    out = scores.copy()
    if rules.history is not None:
        for row, ids in zip(out, rules.history, strict=True):
            for i in set(ids.tolist()):
                row[i] *= rules.penalty if row[i] < 0 else 1 / rules.penalty
    out[:, rules.suppressed] = -np.inf
    out[rules.banned[:, 0], rules.banned[:, 1]] = -np.inf
    for row, ids in rules.forced.items():
        out[row] = -np.inf
        out[row, list(ids)] = 0
    return out


def processors(own: SearchConfig, eos: tuple[int, ...], prompt: int, limit: int, least: int) -> list[Any]:
    """The processors in the order in which `generate` makes them."""
    made: list[Any] = []
    if own.repetition_penalty != 1:
        made.append(theirs.RepetitionPenaltyLogitsProcessor(own.repetition_penalty))
    if own.no_repeat_ngram:
        made.append(theirs.NoRepeatNGramLogitsProcessor(own.no_repeat_ngram))
    if own.encoder_no_repeat_ngram:
        rows = torch.tensor([SOURCE] * ROWS)
        made.append(theirs.EncoderNoRepeatNGramLogitsProcessor(own.encoder_no_repeat_ngram, rows))
    if own.bad_words:
        made.append(theirs.NoBadWordsLogitsProcessor([list(w) for w in own.bad_words], list(eos)))
    if least:
        made.append(theirs.MinNewTokensLengthLogitsProcessor(prompt, least, list(eos)))
    if own.forced_bos_id is not None:
        made.append(theirs.ForcedBOSTokenLogitsProcessor(own.forced_bos_id))
    if own.forced_eos_ids:
        made.append(theirs.ForcedEOSTokenLogitsProcessor(prompt + limit, list(own.forced_eos_ids)))
    if own.suppressed:
        made.append(theirs.SuppressTokensLogitsProcessor(list(own.suppressed)))
    if own.begin_suppressed:
        begin = prompt if prompt > 1 or own.forced_bos_id is None else prompt + 1
        made.append(theirs.SuppressTokensAtBeginLogitsProcessor(list(own.begin_suppressed), begin))
    return made


CASES = {
    "nothing": SearchConfig(),
    "penalty": SearchConfig(repetition_penalty=1.7),
    "bigrams": SearchConfig(no_repeat_ngram=2),
    "trigrams": SearchConfig(no_repeat_ngram=3),
    "unigrams": SearchConfig(no_repeat_ngram=1),
    "bigrams of the source": SearchConfig(encoder_no_repeat_ngram=2),
    "trigrams of the source": SearchConfig(encoder_no_repeat_ngram=3),
    "words": SearchConfig(bad_words=((0,), (3, 4), (4, 4, 1), (EOS,), (OTHER_EOS,), (7, EOS), (START, 6), (1, 1, 1, 1, 1))),
    "least": SearchConfig(min_new_tokens=3),
    "bos": SearchConfig(forced_bos_id=6, begin_suppressed=(1, 6)),
    "eos": SearchConfig(forced_eos_ids=(EOS,), bad_words=((0,), (3, EOS))),
    "ends": SearchConfig(forced_eos_ids=(EOS, OTHER_EOS), suppressed=(OTHER_EOS, 9)),
    "begin": SearchConfig(begin_suppressed=(1, 6)),
    "all": SearchConfig(
        repetition_penalty=1.3, no_repeat_ngram=2, encoder_no_repeat_ngram=3, bad_words=((0,), (3, 1)), min_new_tokens=2, forced_bos_id=6,
        forced_eos_ids=(EOS,), suppressed=(9,), begin_suppressed=(1,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("eos", [(EOS,), (OTHER_EOS, EOS)])
@pytest.mark.parametrize("prefix", [(START,), (START, 4, 3)])
@pytest.mark.parametrize("name", CASES)
def test_rules_are_those_of_the_processors(name: str, prefix: tuple[int, ...], eos: tuple[int, ...]) -> None:
    own, rng, limit, steps = CASES[name], np.random.default_rng(7), 7, 7
    found = constraints(own, eos)
    their = processors(own, eos, len(prefix), limit, own.min_new_tokens)
    differing = 0
    for step in range(steps):
        for _ in range(8):
            tokens = rng.integers(0, 6, (ROWS, step))  # few ids, so that n-grams and words come again
            scores = rng.standard_normal((ROWS, VOCABULARY)).astype(np.float32)
            ids = torch.tensor([[*prefix, *row] for row in tokens.tolist()])
            expected = torch.tensor(scores)
            for processor in their:
                expected = processor(ids, expected)
            rules = found.at(requests(limit, prefix=prefix), tokens.tolist())
            np.testing.assert_allclose(applied(rules, scores), expected.numpy(), rtol=1e-6)
            assert rules.forbidden == set(rules.suppressed.tolist())
            differing += not np.array_equal(expected.numpy(), scores)
    assert differing == 0 if not their else differing > 0 or (name == "bos" and len(prefix) > 1)


def test_rows_have_their_own_beginning_and_end() -> None:
    found = constraints(SearchConfig(forced_bos_id=6, forced_eos_ids=(EOS,), begin_suppressed=(1,)))
    rows = [Request(0, [3], [START], 2), Request(1, [3], [START, 4], 1), Request(2, [3], [START, 4], 9)]
    first, second = found.at(rows, [[], [], []]), found.at(rows, [[6], [EOS], [3]])
    assert first.forced == {0: (6,), 1: (EOS,)}
    assert first.banned.tolist() == [[1, 1], [2, 1]]
    assert second.forced == {0: (EOS,)}
    assert second.banned.tolist() == [[0, 1]]


def test_the_caller_is_heard_before_the_model() -> None:
    own = SearchConfig(no_repeat_ngram=2, repetition_penalty=2.0, min_new_tokens=4)
    tokens = [[3, 4, 3]]
    with_own = constraints(own).at(requests(rows=1), tokens)
    assert with_own.banned.tolist() == [[0, 4]]
    assert with_own.forbidden == {EOS}
    assert with_own.penalty == 2.0
    assert with_own.by_row
    without = constraints(own, no_repeat_ngram=0, repetition_penalty=1.0, min_new_tokens=0).at(requests(rows=1), tokens)
    assert not without.by_row
    assert not without.forbidden


def test_static_rules_ask_for_no_processing() -> None:
    own = SearchConfig(bad_words=((START,),), suppressed=(4,), forced_eos_ids=(EOS,), renormalize=True)
    for step in range(5):
        rules = constraints(own).at(requests(), [[3] * step] * ROWS)
        assert not rules.by_row
        assert rules.forbidden == {4, START}
        assert rules.renormalize


def test_a_forced_token_is_not_suppressed_away() -> None:
    found = constraints(SearchConfig(forced_bos_id=6, suppressed=(6,)))
    assert found.at(requests(rows=1), [[]]).forced == {0: (6,)}
