"""Which tokens may come next, so that an answer becomes a text of its format: masks of a grammar over a model's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from onnxport.errors import UsageError
from onnxport.runtime.memory.native import native
from onnxport.runtime.structured import formats
from onnxport.runtime.tokenizer import TextTokenizer

# float32 [256, 8]: of every byte of a mask of bits the mask of numbers, lowest bit first.
MASKS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), np.float32(0), np.float32(-np.inf))
COMPILED = 64  # formats that are kept ready
NO_TOKEN, TOO_COMPLEX = "NoExtensionBias", ("ParserTooComplex", "LexerTooComplex")  # why a matcher stops


class Vocabulary:
    """A model's tokens as llguidance reads them, and the grammars that were made ready for them.

    size: width of the logits. ends: ids that end an answer. UsageError without the extra `structured`.
    """

    def __init__(self, tokenizer: TextTokenizer, size: int, ends: Sequence[int]) -> None:
        library = formats.llguidance()
        self.size, self.ends = size, tuple(ends)
        self._after_space, self._forcing = tokenizer.drops_first_space, tokenizer.spells_bytes
        options = {"eos_token": list(ends) or None, "slices": library.LLTokenizer.json_slices()}
        try:
            with native:
                if self._forcing:
                    self.tokens = library.LLTokenizer(tokenizer.as_json(), n_vocab=max(size, tokenizer.size), **options)
                else:
                    pieces = _Pieces(tokenizer.pieces(size), ends[0] if ends else 0)
                    self.tokens = library.LLTokenizer(library.TokenizerWrapper(pieces), **options)
        except ValueError as error:
            raise formats.refusal(f"llguidance does not know this tokenizer: {error}") from error
        self.foreign_ends = [i for i in self.tokens.eos_tokens if i not in self.ends]  # ends that the model has not
        self._compiled: Callable[[str], Any] = lru_cache(COMPILED)(self._compile)

    def begin(self, grammar: str, skipped: int = 0) -> AnswerFormat:
        """What an answer starts with whose format is `formats.grammar`. skipped: first tokens that are no part of it.

        UsageError: the grammar is at fault, or these tokens cannot write it.
        """
        return AnswerFormat(self, self._compiled(grammar).deep_copy(), skipped)

    def _compile(self, grammar: str) -> Any:
        library, grammar = formats.llguidance(), formats.whole(grammar, self._after_space, self._forcing)
        with native:
            wrong, told = library.LLMatcher.validate_grammar_with_warnings(grammar, self.tokens)
            if wrong:
                raise formats.refusal(told[0])
            matcher = library.LLMatcher(self.tokens, grammar, log_level=0)
            first = matcher.deep_copy()
            first.compute_bitmask()
        if first.is_error():
            raise _stuck(first)
        return matcher


class AnswerFormat:
    """The format of one answer. It is asked by the answer's new tokens so far: beams and guesses go different ways with it in turn."""

    def __init__(self, vocabulary: Vocabulary, matcher: Any, skipped: int = 0) -> None:
        self._vocabulary, self._matcher, self._skipped = vocabulary, matcher, skipped
        self._read: list[int] = []

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether nothing may follow."""
        return not self._go(tokens) or bool(self._matcher.is_stopped())

    def count(self, tokens: Sequence[int], following: Sequence[int]) -> int:
        """How many of the tokens that follow may come, one behind the other."""
        if not following or self.ended(tokens):
            return 0
        with native:
            inside = int(self._matcher.validate_tokens(list(following)))
        return inside

    def allows(self, tokens: Sequence[int], token: int) -> bool:
        """Whether a token may come next; behind the end of the format any may."""
        if self.ended(tokens):
            return True
        if token in self._vocabulary.ends:
            return bool(self._matcher.is_accepting())
        if token in self._vocabulary.foreign_ends:
            return False
        with native:
            return bool(self._matcher.validate_tokens([token]))

    def mask(self, tokens: Sequence[int], into: np.ndarray) -> None:
        """Write 0 for what may come next, -inf for others, into float32 [vocabulary]; behind the end any may. UsageError: none may."""
        if self.ended(tokens):
            into[:] = 0
            return
        with native:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _stuck(self._matcher)
        eights = (len(into) + 7) // 8
        if len(into) % 8:
            into[:] = MASKS[bits[:eights]].ravel()[: len(into)]
        else:
            np.take(MASKS, bits[:eights], axis=0, out=into.reshape(eights, 8), mode="clip")  # "raise" would write a copy first
        into[self._vocabulary.foreign_ends] = -np.inf

    def _go(self, tokens: Sequence[int]) -> bool:
        """Bring the matcher to where these tokens lead; False where they have an end, or do not belong to the format."""
        wanted = list(map(int, tokens[self._skipped :]))
        if wanted == self._read:
            return True
        same = next((i for i, (a, b) in enumerate(zip(wanted, self._read, strict=False)) if a != b), min(len(wanted), len(self._read)))
        new = wanted[same:]
        with native:
            if same < len(self._read):
                self._matcher.rollback(len(self._read) - same)
                del self._read[same:]
            if not new:
                return True
            if new[-1] in self._vocabulary.ends or self._matcher.validate_tokens(new) < len(new):
                return False
            self._matcher.consume_tokens(new)
        if self._matcher.is_error():
            raise _stuck(self._matcher)
        self._read += new
        return True


class _Pieces:
    """Tokens by their texts, in the form in which llguidance takes a tokenizer. A token without a text never comes."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], end: int) -> None:
        self.tokens, self.eos_token_id = pieces, end
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]

    def __call__(self, text: bytes) -> list[int]:
        """Asked where texts are forced, which needs tokens for any text."""
        return []


def _stuck(matcher: Any) -> UsageError:
    """What stopped a matcher before its format ended."""
    reason, told = str(matcher.stop_reason()), str(matcher.get_error()).partition("<state>")[0]
    if reason in TOO_COMPLEX:
        return UsageError("response_format: it is too complex to follow; make it simpler")
    if NO_TOKEN in (reason, told.strip()):
        return UsageError(
            "response_format: the model's tokenizer has no token for what must come next; allow other characters, or use another model"
        )
    return formats.refusal(told or reason)
