"""A bundle's tokenizer: text to token ids and back, with checks, and text that grows as tokens arrive."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from onnxport.errors import BundleError, TextError, UsageError, one_line
from onnxport.runtime.memory.native import native

# Marks in a converted tokenizer.json, which no text can match: tokens from the first on have no id of their own and mean the unknown
# token, whose name follows the second mark in the next entry. They are there because they decide where a text is cut.
UNKNOWN_FROM, UNKNOWN_IS = "\ufdd2", "\ufdd4"

LONGEST = 1 << 24  # characters of a text: nothing ends a tokenizer early, and more would take it minutes
SHARED = 128  # tokens that neighbouring windows of a text share, at most half a window: the custom of question answering

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Piece:
    """A window of a text. offsets: the characters of each token in the text, (0, 0) for special tokens.

    The encoding has offsets too, from which the library takes the space before a word a second time as it adds special tokens.
    """

    encoding: Encoding
    offsets: list[tuple[int, int]]


class TextTokenizer:
    """A tokenizer.json, from its path or its bytes. BundleError when it cannot be used.

    Its post-processor adds the special tokens; padding and truncation are off, nothing is cut in silence.
    """

    def __init__(self, source: Path | bytes) -> None:
        where = "tokenizer.json" if isinstance(source, bytes) else str(source)
        try:
            with native:
                self._tokenizer = Tokenizer.from_buffer(source) if isinstance(source, bytes) else Tokenizer.from_file(where)
        except Exception as e:  # tokenizers raises bare Exception
            raise BundleError(f"{where}: not a usable tokenizer ({one_line(e)}); export the model again") from e
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cutting: tuple[int, str, TextTokenizer] | None = None  # the copy that was last asked for: large ones take a second to make
        self._end = self._tokenizer.token_to_id(UNKNOWN_FROM)
        self._unknown = 0 if self._end is None else self._unknown_id(where, self._end + 1)
        self._begun = _beginnings(self._tokenizer)
        self._special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Ids of each text, with special tokens unless `special` is False. TextError for what is not encodable text."""
        return [self.known(e.ids) for e in self._read(texts, special)]

    def read(self, texts: Sequence[tuple[str, str | None]]) -> list[Encoding]:
        """Each text, or pair of texts, with its special tokens. TextError for what is not encodable text."""
        return self._read([text if pair is None else (text, pair) for text, pair in texts], special=True)

    def cut(self, text: str, pair: str | None, most: int, stride: int | None, cut_first: bool = False) -> list[Piece]:
        """A text, or a pair of texts, in windows of at most `most` tokens that share `stride` tokens (None: SHARED, at most half a window).

        The last part, `pair` if there is one, is cut, or the first with `cut_first`; the other is in every window. TextError: no room
        beside the other; UsageError: a stride that leaves no room for new tokens.
        """
        parts = self._read([text] if pair is None else [text, pair], special=False)
        long = parts.pop(0 if cut_first else -1)
        room = most - self._tokenizer.num_special_tokens_to_add(pair is not None) - sum(len(e.ids) for e in parts)
        if room < 1:
            whole, size = (pair if cut_first and pair is not None else text), len(parts[0].ids) if parts else 0
            raise TextError(f"{whole!r:.60} has {size} tokens, which leaves no room for the other text in {most}; shorten it")
        if stride is not None and stride >= room:
            raise UsageError(f"stride is {stride}, expected less than the {room} tokens that a window holds beside the rest")
        long.truncate(room, stride=min(SHARED, room // 2) if stride is None else stride)
        pairs = [[part, *parts] if cut_first else [*parts, part] for part in (long, *long.overflowing)]
        return [self._finished(pair) for pair in pairs]

    def _finished(self, parts: Sequence[Encoding]) -> Piece:
        """One or two encodings with special tokens."""
        encoding = self._tokenizer.post_process(parts[0], parts[1] if len(parts) > 1 else None)
        given = iter([offsets for part in parts for offsets in part.offsets])
        return Piece(encoding, [(0, 0) if special else next(given) for special in encoding.special_tokens_mask])

    def words(self, words: list[str], most: int | None, stride: int | None) -> list[Piece]:
        """A text that is words already, in windows of at most `most` tokens that share `stride`; TextError and UsageError as `cut`."""
        (whole,) = self._read([words], special=True)
        if most is None or len(whole.ids) <= most:
            return [Piece(whole, whole.offsets)]
        (long,) = self._read([words], special=False)
        room = most - self.specials
        if stride is not None and stride >= room:
            raise UsageError(f"stride is {stride}, expected less than the {room} tokens that a window holds")
        long.truncate(room, stride=min(SHARED, room // 2) if stride is None else stride)
        return [self._finished([part]) for part in (long, *long.overflowing)]

    def _read(self, texts: Sequence[Any], special: bool) -> list[Encoding]:
        words = bool(texts) and isinstance(texts[0], list)
        for one in texts:
            for text in one if isinstance(one, tuple | list) else (one,):
                check_text(text)
        try:
            with native:
                return list(self._tokenizer.encode_batch(list(texts), is_pretokenized=words, add_special_tokens=special))
        except BaseException as e:
            if not _is_refusal(e):
                raise
            if len(texts) > 1:  # find the one that is refused
                return [self._read([one], special)[0] for one in texts]
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise TextError(f"the tokenizer cannot encode {texts[0]!r:.60} ({reason}); change the text or give token ids") from e

    def truncating(self, most: int, pairs: str = "longest_first") -> TextTokenizer:
        """One that cuts texts after `most` tokens, as transformers does with truncation=True.

        pairs: which of two texts is cut, at its end: "longest_first", "only_first" or "only_second".
        UsageError where so many tokens leave no room for a text.
        """
        if most <= self.specials:
            raise UsageError(f"texts are cut after {most} tokens, {self.specials} of which are special: they leave no room; allow more")
        cutting = self._cutting  # read once: another thread may ask for another copy
        if cutting is None or cutting[:2] != (most, pairs):
            copy = TextTokenizer(self.as_json().encode())
            copy._tokenizer.enable_truncation(most, strategy=pairs)
            self._cutting = cutting = most, pairs, copy
        return cutting[2]

    @property
    def specials(self) -> int:
        """Special tokens that a text gets."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        return [end for _, end in self._read([text], special=False)[0].offsets]

    def known(self, ids: list[int]) -> list[int]:
        """The ids with marks in place of unknown tokens resolved."""
        return ids if self._end is None else [i if i < self._end else self._unknown for i in ids]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ids; special tokens are left out unless `special`."""
        with native:
            return self._tokenizer.decode(list(ids), skip_special_tokens=not special)

    def written(self, names: Sequence[str]) -> str:
        """The text of tokens by their names, as the tokenizer puts it together."""
        decoder = self._tokenizer.decoder
        return " ".join(names) if decoder is None else str(decoder.decode(list(names)))

    def token(self, i: int) -> str | None:
        """The name of an id; None where there is none."""
        found: str | None = self._tokenizer.id_to_token(i)
        return found

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name; None where there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def as_json(self) -> str:
        """The tokenizer, as a tokenizer.json."""
        return str(self._tokenizer.to_str())

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab(True).values(), default=-1)

    @property
    def spells_bytes(self) -> bool:
        """Whether its tokens are bytes, so that any text can be written, and a token may be a part of a character."""
        state = json.loads(self._tokenizer.decoder.__getstate__()) if self._tokenizer.decoder is not None else {}
        return any(step.get("type") in ("ByteLevel", "ByteFallback") for step in (state, *state.get("decoders", ())))

    def pieces(self, count: int) -> list[bytes]:
        """What each of the ids below `count` adds to a text that stands already, as UTF-8; nothing for special ones and unknown ones."""
        end = min(count, self.size if self._end is None else self._end)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        usual = [i for i in range(end) if i not in self._special and self.token(i) not in (None, unknown)]
        first = next((i for i in usual if self.decode([i]).strip()), None)
        found = [b""] * count
        if first is not None:
            before = self.decode([first])
            for i in usual:
                text = self.decode([first, i])
                found[i] = text.removeprefix(before).encode() if text.startswith(before) else b""
        return found

    @property
    def drops_first_space(self) -> bool:
        """Whether the text of a token loses the space before it where the token is the first."""
        usual = (i for i in range(self.size if self._end is None else self._end) if i not in self._special and self.token(i) is not None)
        first = next((i for i in usual if self.decode([i]).strip()), None)
        if first is None:
            return False
        before = self.decode([first])
        spaced = next((i for i in usual if self.decode([first, i]).startswith(before + " ") and self.decode([i]).strip()), None)
        return spaced is not None and not self.decode([spaced]).startswith(" ")

    @property
    def marks_continuations(self) -> bool:
        """Whether names of tokens say that they continue a word, as WordPiece's `##` does."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    def is_open(self, token: int) -> bool:
        """True for a token after which text may still change: byte-fallback tokens join their neighbours, across those without text too."""
        name = self._tokenizer.id_to_token(token)
        return name is None or token in self._special or _BYTE.fullmatch(name) is not None

    def _unknown_id(self, where: str, entry: int) -> int:
        name = self._tokenizer.id_to_token(entry) or ""
        found = self._tokenizer.token_to_id(name.removeprefix(UNKNOWN_IS)) if name.startswith(UNKNOWN_IS) else None
        if found is None:
            raise BundleError(f"{where}: names no unknown token behind its last id; export the model again")
        return found

    def may_shrink(self, text: str) -> bool:
        """True when the decoder may still rewrite the end of `text`, as when it takes the space before a mark away."""
        return self.rewrites and text.endswith(self._begun)

    @property
    def rewrites(self) -> bool:
        """True when the decoder rewrites whole texts, so that a part of the tokens does not always give a part of the text."""
        return bool(self._begun)


def _is_refusal(error: BaseException) -> bool:
    """True for what the library raises itself: bare Exception, and for a panic in Rust a BaseException that it does not export."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _beginnings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """How texts may begin that the tokenizer's decoder rewrites after it joined all tokens (`Replace` behind `Fuse`)."""
    state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    steps = state.get("decoders", [])
    types = [step["type"] for step in steps]
    late = steps[types.index("Fuse") :] if "Fuse" in types else []
    patterns = [step["pattern"].get("String", "") for step in late if step["type"] == "Replace"]
    return tuple(sorted({pattern[:size] for pattern in patterns for size in range(1, len(pattern))}))


def check_text(text: object) -> None:
    """TextError unless `text` is a str that UTF-8 can hold."""
    if not isinstance(text, str):
        raise TextError(f"input is {type(text).__name__}, expected text (str) or a list of token ids")
    if len(text) > LONGEST:
        raise TextError(f"text has {len(text)} characters, expected at most {LONGEST}; split it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise TextError(
            f"text holds a lone surrogate U+{ord(text[e.start]):04X} at {e.start}, expected valid Unicode; decode it rightly"
        ) from None


def check_ids(ids: Sequence[object], vocabulary: int | None, what: str = "token id") -> list[int]:
    """The ids as ints. TextError for one that is not a whole number (bool and float are not) or is outside the vocabulary."""
    checked = []
    for i in ids:
        number = i if type(i) is int else _whole(i, what)
        if number < 0 or (vocabulary is not None and number >= vocabulary):
            raise TextError(f"{what} {number} is outside the vocabulary of {vocabulary}; ids go from 0 to {(vocabulary or 0) - 1}")
        checked.append(number)
    return checked


def _whole(value: object, what: str) -> int:
    """TextError for what is no whole number; truth values and arrays are none."""
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    try:
        if kind.startswith("bool") or getattr(value, "ndim", None):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TextError(f"{what} {value!r:.60} is {type(value).__name__}, expected a whole number") from None


class TextStream:
    """Text of a growing sequence of ids: pieces are only what later tokens cannot change, and join to the final text.

    Held back are incomplete UTF-8 characters, runs of byte tokens and text that may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._start = 0  # decoding begins here: a few tokens back, so that spaces between tokens come out right
        self._done = 0  # tokens before this are in `_text`
        self._text = ""  # decoded for good
        self._emitted = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """What was emitted so far."""
        return self._text[: self._emitted]

    @property
    def emitted(self) -> int:
        """The number of characters of `text`."""
        return self._emitted

    def push(self, token: int) -> str:
        """Add a token; the piece of text that is now certain (may be empty). Sets `stopped` when a stop string appeared: it is cut off."""
        self._ids.append(token)
        if not self._tokenizer.is_open(token):
            self._settle(final=False)
        return self._emit(final=False)

    def finish(self) -> str:
        """The piece that was held back. No more tokens may follow."""
        if not self.stopped:
            self._settle(final=True)
        return self._emit(final=True)

    def _settle(self, final: bool) -> None:
        known = self._tokenizer.decode(self._ids[self._start : self._done])
        longer = self._tokenizer.decode(self._ids[self._start :])
        if not final and (longer.endswith("\ufffd") or not longer.startswith(known) or self._tokenizer.may_shrink(longer)):
            return
        if len(longer) > len(known) or final:
            shared = len(known) if longer.startswith(known) else _common(known, longer)
            self._text += longer[shared:]
            self._start, self._done = 0 if self._tokenizer.rewrites else self._done, len(self._ids)

    def _emit(self, final: bool) -> str:
        if self.stopped:
            return ""
        end = len(self._text)
        if self._stops:
            longest = max(map(len, self._stops))
            found = [i for i in (self._text.find(s, max(0, self._emitted - longest)) for s in self._stops) if i >= 0]
            if found:
                end, self.stopped = max(min(found), self._emitted), True
                self._text = self._text[:end]
            elif not final:
                end -= self._held()
        piece = self._text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(len(self._text), max(map(len, self._stops)) - 1), 0, -1):
            if any(s.startswith(self._text[-size:]) for s in self._stops):
                return size
        return 0


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
