"""What a model can be asked besides generating: one method a task; what a task needs is imported when it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport.errors import UsageError

if TYPE_CHECKING:
    from onnxport.runtime.encode import Encoder, Text
    from onnxport.runtime.engine import Engine
    from onnxport.runtime.generate import Generator, Input
    from onnxport.runtime.tasks.classification import Classification
    from onnxport.runtime.tasks.question_answering import Answer
    from onnxport.runtime.tasks.scoring import Likelihood, Scored, Scorer
    from onnxport.runtime.tokenizer import TextTokenizer


class Tasks(ABC):
    """The methods of a Model that are for bundles of one task."""

    engine: Engine | None
    _tokenizers: dict[str, TextTokenizer]

    @abstractmethod
    def generating(self) -> Generator:
        """The generator of a bundle that generates. UsageError for others."""

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

    def score(self, inputs: str | Sequence[Input], targets: str | Sequence[Input], *, top: int = 0, batch_size: int = 32) -> list[Scored]:
        """What a model that generates thinks of given answers: the log-probability of each target's tokens, a Scored a target.

        inputs: texts or lists of ids: sources of an encoder-decoder; prompts of a language model, which may be empty (its bos then stands
        before the target; without one the first token has nothing before it and scores NaN). targets: texts or ids. A text is tokenized on
        its own: for an encoder-decoder with its end, as it would be learned, for a language model without special tokens. Ids are taken as
        they are. top: also the so many most probable tokens in every place. batch_size: rows that are scored together, of like length.
        Errors: UsageError, TextError (also longer than the model), DataError (the model answers NaN).
        """
        many = [inputs] if isinstance(inputs, str) else listed(inputs)
        return self._scorer().score(many, [targets] if isinstance(targets, str) else listed(targets), top, batch_size)

    def likelihoods(
        self, texts: str | Sequence[Input], *, window: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> list[Likelihood]:
        """The negative log-likelihood of each text and the number of tokens it is of, for bundles that continue a text.

        A text's first token has nothing before it and is not counted. Longer texts are read in windows of `window` tokens (None: what the
        model takes, at most 1024) that begin every `stride` tokens (None: half a window; less gives more context and takes longer): each
        scores the tokens that the one before did not reach (transformers' documentation, "Perplexity of fixed-length models").
        Errors: as `score`.
        """
        return self._scorer().likelihoods([texts] if isinstance(texts, str) else listed(texts), window, stride, batch_size)

    def perplexity(
        self, texts: str | Sequence[Input], *, window: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> float:
        """exp of the mean negative log-likelihood a token, over all tokens of all texts; the rest as `likelihoods`."""
        from onnxport.runtime.tasks.scoring import perplexity

        return perplexity(self.likelihoods(texts, window=window, stride=stride, batch_size=batch_size))

    def _scorer(self) -> Scorer:
        from onnxport.runtime.tasks.scoring import Scorer, stepped

        self.generating()
        assert self.engine is not None  # it generates
        return Scorer(self.engine.config, self._tokenizers.get("source"), self._tokenizers.get("target"), partial(stepped, self.engine))


def listed(value: Any) -> list[Any]:
    """A list of what a caller gave as many. UsageError for what cannot be iterated."""
    if not isinstance(value, (list, tuple, np.ndarray)) and not hasattr(value, "__iter__"):
        raise UsageError(f"inputs is {type(value).__name__}, expected a text or a list of texts or of lists of token ids")
    return list(value)
