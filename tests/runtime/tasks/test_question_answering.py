"""Question answering against the rules of transformers' pipeline, written plainly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import DataError, TextError, UsageError
from onnxport.runtime import Model, load
from support import tiny_encoder as tiny
from support.tiny_encoder import CLS, SEP

ROWS = tiny.table(2, seed=3) * 2
QUESTION = "Who sat?"
CONTEXT = "The  cat sat on a mat, naïve as ever; the Dog lay by “the door”. " * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny.write(tmp_path_factory.mktemp("qa") / "b", "question-answering", ROWS, max_length=40), threads=1)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def plainly(question: str, context: str, most: int, stride: int, longest: int, count: int) -> tuple[list[tuple[float, int, int]], float]:
    """Spans (score, start, end) best first, and the score of no answer."""
    encoding = tiny.tokenizer().encode(context, add_special_tokens=False)
    asked = [CLS, *tiny.ids(question), SEP]
    room = most - len(asked) - 1
    spans: dict[tuple[int, int], float] = {}
    nothing = 1.0
    for part in tiny.windows(list(range(len(encoding.ids))), room, stride):
        rows = ROWS[[CLS, *(encoding.ids[t] for t in part)]].astype(np.float64)
        first, last = softmax(rows[:, 0]), softmax(rows[:, 1])
        nothing = min(nothing, first[0] * last[0])
        scored = [(first[i + 1] * last[j + 1], i, j) for i in range(len(part)) for j in range(i, min(len(part), i + longest))]
        for score, i, j in sorted(scored, reverse=True)[:count]:
            words = [k for k in range(len(encoding.ids)) if encoding.word_ids[k] == encoding.word_ids[part[i]] and k in part]
            others = [k for k in range(len(encoding.ids)) if encoding.word_ids[k] == encoding.word_ids[part[j]] and k in part]
            place = encoding.offsets[words[0]][0], encoding.offsets[others[-1]][1]
            spans[place] = max(spans.get(place, 0), score)
    return sorted(((score, *place) for place, score in spans.items()), reverse=True)[:count], nothing


@pytest.mark.parametrize("stride", [0, 5, 13])
@pytest.mark.parametrize("longest", [1, 6, 30])
def test_spans_of_all_windows_compete(model: Model, stride: int, longest: int) -> None:
    (found,) = model.answer(question=QUESTION, context=CONTEXT, n_best=5, max_answer_tokens=longest, stride=stride, batch_size=3)
    wanted, nothing = plainly(QUESTION, CONTEXT, 40, stride, longest, 5)
    answers = [found, *found.alternatives]
    assert [one.score for one in answers] == pytest.approx([score for score, _, _ in wanted], rel=1e-5)
    assert [(one.start, one.end) for one in answers][:1] == [place[1:] for place in wanted][:1]
    assert found.no_answer_score == pytest.approx(nothing, rel=1e-5)
    for one in answers:
        assert one.answer == CONTEXT[one.start : one.end]
        assert one.answer == one.answer.strip() != ""


def test_answers_are_whole_words_of_the_original_text(model: Model) -> None:
    context = "  Ünïted  Kingdom’s\tçay — №5. "
    (found,) = model.answer(question=QUESTION, context=context, n_best=50)
    places = {(one.start, one.end) for one in (found, *found.alternatives)}
    assert all(context[start:end] == context[start:end].strip() for start, end in places)
    assert all(start == 0 or not (context[start - 1].isalpha() and context[start].isalpha()) for start, _ in places)


def test_no_answer_may_win(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[CLS] = 15
    with load(tiny.write(tmp_path / "b", "question-answering", rows, max_length=40), threads=1) as model:
        (found,) = model.answer(question=QUESTION, context=CONTEXT, no_answer=True, n_best=2)
        assert (found.answer, found.start, found.end) == ("", 0, 0)
        assert found.score == found.no_answer_score > 0.9
        assert found.alternatives[0].answer
        (found,) = model.answer(question=QUESTION, context=CONTEXT)
        assert found.answer
        assert found.score < found.no_answer_score


def test_many_questions(model: Model) -> None:
    one = model.answer(question=["Who?", "What sat?"], context=CONTEXT)
    assert one == model.answer(question=["Who?", "What sat?"], context=[CONTEXT, CONTEXT])
    assert one[1] == model.answer(question="What sat?", context=CONTEXT)[0]
    assert model.answer(question=[], context=[]) == []


@pytest.mark.parametrize(
    ("given", "error", "part"),
    [
        ({"question": ""}, TextError, "empty"),
        ({"context": "\n"}, TextError, "empty"),
        ({"question": "why " * 15}, TextError, "leaves no room"),
        ({"question": 3}, UsageError, "int"),
        ({"context": ["a", "b"]}, UsageError, "2 entries"),
        ({"n_best": 0}, UsageError, "n_best is 0"),
        ({"max_answer_tokens": True}, UsageError, "max_answer_tokens is True"),
        ({"window": "9"}, UsageError, "window is '9'"),
        ({"stride": 39}, UsageError, "stride is 39"),
    ],
)
def test_bad_input_is_told_in_a_line(model: Model, given: dict[str, Any], error: type[Exception], part: str) -> None:
    with pytest.raises(error) as caught:
        model.answer(**{"question": QUESTION, "context": CONTEXT, **given})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "b", "question-answering", np.full_like(ROWS, np.inf))
    with load(path, threads=1) as model, pytest.raises(DataError, match="NaN"):
        model.answer(question=QUESTION, context=CONTEXT)
