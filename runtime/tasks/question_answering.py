"""Question answering: answers are spans of a context.

The rules are those of transformers' question-answering pipeline (transformers 4, pipelines/question_answering.py). Windows have at most 384
tokens. In each, probabilities of starts and ends are a softmax over the context's tokens and the token that stands for "no answer"; the
score of a span is the product of its two. The best spans of all windows compete; "no answer" has the least score it got in any window. A
span is widened to whole words. The token for "no answer" is the first special one, [CLS], or the last where a model has it there, as XLNet.
A model whose tokenizer pads on the left, as XLNet's, reads the context before the question; that pipeline then finds answers in the
question too, this one does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Encoding

from onnxport.errors import UsageError
from onnxport.runtime.arrays import softmax
from onnxport.runtime.encoder import Encoder, Window, expect, finite
from onnxport.runtime.shown import Shown

START, END = "start_logits", "end_logits"
WINDOW = 384


@dataclass(frozen=True, repr=False)
class Answer(Shown):
    """answer: context[start:end], empty where there is none. score: its probability. no_answer_score: that of no answer.

    alternatives: the next best, with n_best.
    """

    answer: str
    start: int
    end: int
    score: float
    no_answer_score: float
    alternatives: tuple[Answer, ...] = ()


def answer(
    encoder: Encoder,
    questions: Sequence[tuple[str, str]],
    n_best: int,
    max_answer_tokens: int,
    no_answer: bool,
    batch_size: int,
    stride: int | None,
    window: int | None,
) -> list[Answer]:
    """An Answer a (question, context), in order. no_answer: whether there may be none. UsageError, TextError."""
    if isinstance(n_best, bool) or not isinstance(n_best, int) or n_best < 1:
        raise UsageError(f"n_best is {n_best!r}, expected a whole number from 1")
    found = []
    for spans, null in candidates(encoder, questions, n_best, max_answer_tokens, batch_size, stride, window):
        best: dict[tuple[int, int], float] = {}
        for span, score in spans:
            best[span] = max(best.get(span, 0.0), score)
        found.append((best, null))
    return [_best(context, spans, null, n_best, no_answer) for (_, context), (spans, null) in zip(questions, found, strict=True)]


def candidates(
    encoder: Encoder,
    questions: Sequence[tuple[str, str]],
    count: int,
    max_answer_tokens: int,
    batch_size: int,
    stride: int | None,
    window: int | None,
) -> list[tuple[list[tuple[tuple[int, int], float]], float]]:
    """Of each (question, context) the best `count` spans of every window, in the windows' order, and the score of no answer.

    A span is its characters in the context and its score; several may have the same characters. Errors: as `answer`.
    """
    expect(encoder, "question-answering", (START, END))
    for name, value in (("max_answer_tokens", max_answer_tokens), ("window", window)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name} is {value!r}, expected a whole number from 1")
    nothing = [1.0] * len(questions)
    first = encoder.config.question_first
    pairs = [*questions] if first else [(context, question) for question, context in questions]
    place = 1 if first else 0  # of the context
    windows = encoder.windows(pairs, stride, WINDOW if window is None else window, cut_first=not first)
    spans: dict[int, list[tuple[tuple[int, int], float]]] = {}  # by id of a window
    for part, outputs in encoder.each(windows, batch_size):
        owner, length = part.owner, len(part)
        starts, ends = (finite(outputs[name][:length], owner) for name in (START, END))
        null, begins, finishes = _probabilities(starts, ends, part.encoding, place)
        nothing[owner] = min(nothing[owner], null)
        found = _spans(begins, finishes, max_answer_tokens, count)
        spans[id(part)] = [(_characters(part, questions[owner][1], i, j), score) for score, i, j in found]
    results: list[tuple[list[tuple[tuple[int, int], float]], float]] = [([], null) for null in nothing]
    for part in windows:
        results[part.owner][0].extend(spans[id(part)])
    return results


def _probabilities(starts: np.ndarray, ends: np.ndarray, encoding: Encoding, place: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The score of no answer, and of each token the probability to begin and to end an answer. place: of the context, 0 or 1."""
    special = encoding.special_tokens_mask
    # the library forgets the place of a first text that was cut
    lost = [place == 0 and sequence is None and not mark for sequence, mark in zip(encoding.sequence_ids, special, strict=True)]
    inside = np.array([sequence == place for sequence in encoding.sequence_ids]) | lost
    allowed = inside.copy()
    null = 0 if special[0] else len(special) - 1
    allowed[null] = True
    first, last = (softmax(np.where(allowed, logits.astype(np.float64), -np.inf)) for logits in (starts, ends))
    return float(first[null] * last[null]), first * inside, last * inside


def _spans(first: np.ndarray, last: np.ndarray, most: int, count: int) -> Iterator[tuple[float, int, int]]:
    """The best `count` spans of at most `most` tokens: score, first and last token."""
    most = min(most, len(first))
    ahead = np.concatenate([last, np.zeros(most - 1)])
    scores = first[:, None] * np.lib.stride_tricks.sliding_window_view(ahead, most)  # [first token, tokens more]
    flat = scores.ravel()
    few = min(count, flat.size)
    best = np.argpartition(-flat, few - 1)[:few]
    for i in best[np.argsort(-flat[best], kind="stable")]:
        if flat[i] > 0:
            yield float(flat[i]), int(i) // most, int(i) // most + int(i) % most


def _characters(window: Window, context: str, first: int, last: int) -> tuple[int, int]:
    """Where a span of tokens begins and ends in the context, in whole words, without the space around it."""
    words, offsets, sequences = window.encoding.word_ids, window.offsets, window.encoding.sequence_ids

    def joins(token: int, following: int, word: int | None) -> bool:
        """True where two neighbours are of one word; a tokenizer that knows no words has one for all, so no space may lie between."""
        if word is None or not 0 <= following < len(words):
            return False
        left, right = sorted((token, following))
        between = context[offsets[left][1] : offsets[right][0] + 1]
        return sequences[following] == sequences[first] and words[following] == word and not any(map(str.isspace, between))

    while joins(first, first - 1, words[first]):
        first -= 1
    while joins(last, last + 1, words[last]):
        last += 1
    start, end = offsets[first][0], offsets[last][1]
    text = context[start:end]
    return end - len(text.lstrip()), start + len(text.rstrip())


def _best(context: str, found: dict[tuple[int, int], float], null: float, count: int, no_answer: bool) -> Answer:
    answers = [Answer(context[start:end], start, end, score, null) for (start, end), score in found.items()]
    if no_answer or not answers:
        answers.append(Answer("", 0, 0, null, null))
    best, *others = sorted(answers, key=lambda one: -one.score)[:count]
    return replace(best, alternatives=tuple(others))
