"""Log-probabilities of an answer's tokens, in the forms of completions and of chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxport.runtime import Model


class Spelling:
    """The text of an answer's tokens, one after the other: joined it is the answer's text before stop texts cut it.

    A token whose text is certain only with those behind it, such as a part of a character, has "".
    """

    def __init__(self, model: Model) -> None:
        self._stream, self._length = model.text_stream(), 0

    def texts(self, tokens: Sequence[int], last: bool) -> list[str]:
        """What each token adds; `last` where no more follow."""
        found = [self._stream.push(token) for token in tokens]
        if last and found:
            found[-1] += self._stream.finish()
        return found

    def completion(self, tokens: Sequence[int], logprobs: Sequence[float], last: bool) -> dict[str, Any]:
        """`logprobs` of a completion's choice, of its next tokens."""
        texts, offsets = self.texts(tokens, last), []
        for text in texts:
            offsets.append(self._length)
            self._length += len(text)
        return {"tokens": texts, "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": offsets}

    def chat(self, tokens: Sequence[int], logprobs: Sequence[float], last: bool) -> dict[str, Any]:
        """`logprobs` of a chat's choice, of its next tokens."""
        entries = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8")), "top_logprobs": []}
            for text, logprob in zip(self.texts(tokens, last), logprobs, strict=True)
        ]
        return {"content": entries, "refusal": None}
