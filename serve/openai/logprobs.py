"""Log-probabilities of an answer's tokens, in the forms of completions and of chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxport.runtime import Generation, Model

Best = Sequence[tuple[int, float]]  # ids and log-probabilities of the best tokens that there were, best first


@dataclass(frozen=True)
class Tokens:
    """Tokens of an answer with their log-probabilities, and the best ones in the place of each where they were asked for."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    best: Sequence[Best]

    @classmethod
    def of(cls, answer: Generation | None, start: int = 0) -> Tokens:
        """Those of an answer from a place on."""
        if answer is None:
            return cls([], [], [])
        best: Sequence[Best] = answer.top_logprobs or [()] * len(answer.tokens)
        return cls(answer.tokens[start:], answer.token_logprobs[start:], best[start:])


class Spelling:
    """The text of an answer's tokens, one after the other: joined it is the answer's text before stop texts cut it.

    A token whose text is certain only with those behind it, such as a part of a character, has "".
    """

    def __init__(self, model: Model) -> None:
        self._model, self._stream, self._length = model, model.text_stream(), 0
        self._last: int | None = None

    def texts(self, tokens: Sequence[int], last: bool) -> list[str]:
        """What each token adds; `last` where no more follow."""
        found = [self._stream.push(token) for token in tokens]
        if last and found:
            found[-1] += self._stream.finish()
        return found

    def completion(self, new: Tokens, last: bool) -> dict[str, Any]:
        """`logprobs` of a completion's choice, of its next tokens."""
        texts, offsets = self.texts(new.tokens, last), []
        for text in texts:
            offsets.append(self._length)
            self._length += len(text)
        best = [dict(reversed(one)) for one in self._best(new)]  # of two with the same text the better one stays
        told = best if any(best) else None
        return {"tokens": texts, "token_logprobs": list(new.logprobs), "top_logprobs": told, "text_offset": offsets}

    def chat(self, new: Tokens, last: bool) -> dict[str, Any]:
        """`logprobs` of a chat's choice, of its next tokens."""
        texts = self.texts(new.tokens, last)
        entries = [
            {**_told(text, logprob), "top_logprobs": [_told(*one) for one in best]}
            for text, logprob, best in zip(texts, new.logprobs, self._best(new), strict=True)
        ]
        return {"content": entries, "refusal": None}

    def _best(self, new: Tokens) -> list[list[tuple[str, float]]]:
        """The best tokens of each place, as text behind the token before it."""
        found = []
        for token, best in zip(new.tokens, new.best, strict=True):
            found.append([(self._model.token_text(one, self._last), logprob) for one, logprob in best])
            self._last = token
        return found


def _told(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}
