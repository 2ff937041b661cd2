"""What a model can be asked besides generating: one method a task; what a task needs is imported when it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport.errors import UsageError

if TYPE_CHECKING:
    from onnxport.runtime.encode import Encoder, Text
    from onnxport.runtime.tasks.classification import Classification
    from onnxport.runtime.tasks.question_answering import Answer


class Tasks(ABC):
    """The methods of a Model that are for bundles of one task."""

    @abstractmethod
    def encoding(self) -> Encoder:
        """The encoder of a bundle that does not generate. UsageError for others."""

    def encode(self, texts: str | Sequence[str], *, batch_size: int = 32, stride: int | None = None) -> np.ndarray:
        """Vectors float32 [texts, hidden] of an embedding bundle: pooled over tokens, and of length 1 where the bundle says so.

        Texts may be longer than the model: windows that share `stride` tokens (None: 128, at most half a window) are merged by a mean
        weighted by their tokens; so too in `classify`. Errors: UsageError, TextError, DataError (the model answers NaN).
        """
        from onnxport.runtime.tasks.embedding import encode

        return encode(self.encoding(), [texts] if isinstance(texts, str) else listed(texts), batch_size, stride)

    def classify(self, texts: Text | Sequence[Text], *, batch_size: int = 32, stride: int | None = None) -> list[Classification]:
        """Labels with their probabilities, of texts or of pairs (tuples of two texts); a single one gives a list of one.

        Errors: as `encode`.
        """
        from onnxport.runtime.tasks.classification import classify

        many = [texts] if isinstance(texts, (str, tuple)) else listed(texts)
        return classify(self.encoding(), many, batch_size, stride)

    def answer(
        self,
        *,
        question: str | Sequence[str],
        context: str | Sequence[str],
        n_best: int = 1,
        max_answer_tokens: int = 30,
        no_answer: bool = False,
        batch_size: int = 32,
        stride: int | None = None,
        window: int | None = None,
    ) -> list[Answer]:
        """Spans of contexts that answer questions: an Answer a question; one context may serve them all.

        n_best: answers to give, the others as `alternatives`. no_answer: the empty answer may win. Contexts may be of any length: windows
        of `window` tokens (None: 384 or what the model takes, question included) share `stride` tokens (None: 128, at most half a window).
        Errors: as `encode`.
        """
        from onnxport.runtime.tasks.question_answering import answer

        questions = [question] if isinstance(question, str) else listed(question)
        contexts = [context] * len(questions) if isinstance(context, str) else listed(context)
        if len(contexts) != len(questions):
            raise UsageError(f"context has {len(contexts)} entries, expected one for each of {len(questions)} questions, or one text")
        pairs = list(zip(questions, contexts, strict=True))
        return answer(self.encoding(), pairs, n_best, max_answer_tokens, no_answer, batch_size, stride, window)


def listed(value: Any) -> list[Any]:
    """A list of what a caller gave as many. UsageError for what cannot be iterated."""
    if not isinstance(value, (list, tuple, np.ndarray)) and not hasattr(value, "__iter__"):
        raise UsageError(f"inputs is {type(value).__name__}, expected a text or a list of texts or of lists of token ids")
    return list(value)
