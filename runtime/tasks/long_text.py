"""Long texts, answered in segments: each is as many whole sentences as the model takes, and the answers keep the text's own space.

Sentences are found by rules: where these are not sure, two sentences stay one. Joined, sentences and the space between are the text again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from onnxport.errors import TextError, UsageError
from onnxport.runtime.bundle.manifest import GenerationConfig
from onnxport.runtime.decode.generator import Generation
from onnxport.runtime.options import Options, Watch
from onnxport.runtime.tokenizer import TextTokenizer, check_text

Together = Callable[[Sequence[Generation]], list[Generation]]

WAYS = ("segments", "sentences")
UNLIMITED = 512  # tokens of a segment where a model has no last position
_CLAUSE = re.compile(r"[,;:–—]\s|[，；：、]")
# An end: marks, what closes behind them, and space; marks of Chinese and Japanese need no space.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*")
_LAST_WORD = re.compile(r"[^\s\"'“‘«(\[]*$")
_ABBREVIATIONS = frozenset(
    """mr mrs ms messrs dr prof st mt sr jr rev hon gen col capt lt sgt gov sen rep fig figs vol p pp ch sec art cf al vs viz approx
    ca dept inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec e.g i.e a.m u.s nr bzw z.b d.h u.a u.u s.o vgl evtl ggf inkl
    str hr fr mme mlle sig sra""".split()
)
_SPACE = re.compile(r"\s*")
_BREAK = re.compile(r"[^\S\n]*\n\s*")
_LISTED = re.compile(r"[-*•–—]\s|\(?\w{1,3}[.)]\s")
WRAPPED = 40  # characters: a line that is longer may be wrapped, so that its sentence goes on in the next


def prepare(
    tokenizer: TextTokenizer | None,
    config: GenerationConfig,
    task: str,
    texts: Sequence[object],
    way: str,
    options: Options,
    watch: Watch,
) -> tuple[list[str], Options, Together]:
    """Segments of texts and the options that they are answered with, and what puts their answers together: a Generation a text.

    It has its segments' answers with the text's own space between them, so that lines and paragraphs stay.

    tokens and log-probabilities follow one another, score is their sum; finish_reason is "length" where any segment's is. Without
    max_new_tokens a segment's answer may be as long as the model's positions allow, a summary as long as the model's own settings say.
    UsageError: what does not go with segments.
    """
    if way not in WAYS:
        raise UsageError(f"long is {way!r}, expected one of {', '.join(WAYS)}")
    if config.kind != "seq2seq":
        raise UsageError(f"long is for models that translate or summarize; this bundle's task is {task}")
    if options.n_best > 1 or options.stop or options.stop_token_ids or options.response_format is not None:
        raise UsageError(
            "long takes no n_best, stop, stop_token_ids or response_format: segments are put together from one whole answer each"
        )
    if tokenizer is None:
        raise TextError("the bundle has no tokenizer, so it cannot read text; give token ids that are short enough")
    for text in texts:
        check_text(text)
    segmenter = Segmenter(tokenizer, config.source_length or UNLIMITED, way)
    cut = []
    for text in texts:
        watch.check()
        cut.append(segmenter.cut(str(text)))
    if options.max_new_tokens is None and config.max_new_tokens is None and task != "summarization":
        options = replace(options, max_new_tokens=config.max_length or UNLIMITED)

    def together(found: Sequence[Generation]) -> list[Generation]:
        answers = iter(found)
        return [_together(before, segments, [next(answers) for _ in segments]) for before, segments in cut]

    return [one.text for _, segments in cut for one in segments], options, together


def _together(before: str, segments: Sequence[Segment], answers: Sequence[Generation]) -> Generation:
    text = before + "".join((answer.text or "") + segment.after for segment, answer in zip(segments, answers, strict=True))
    reasons = {answer.finish_reason for answer in answers} - {"empty"}
    return Generation(
        text,
        [token for answer in answers for token in answer.tokens],
        float(sum(answer.score for answer in answers)),
        [value for answer in answers for value in answer.token_logprobs],
        "length" if "length" in reasons else "eos" if reasons else "empty",
        segments=len(segments),
        top_logprobs=[told for answer in answers for told in answer.top_logprobs],
    )


@dataclass(frozen=True)
class Segment:
    """What is answered at once, and the space that follows it in the text."""

    text: str
    after: str


class Segmenter:
    """Cuts texts: as many sentences as `most` tokens hold, or one (way "sentences"); none goes beyond the end of a line or paragraph.

    A sentence that is longer than that is cut behind a clause, a word, or where there is none, a token.
    """

    def __init__(self, tokenizer: TextTokenizer, most: int, way: str) -> None:
        self._tokenizer, self._room, self._way = tokenizer, most - tokenizer.specials, way
        if self._room < 1:
            raise UsageError(f"the model takes {most} tokens, special ones included: too few for a segment")

    def cut(self, text: str) -> tuple[str, list[Segment]]:
        """The space before the text, and its segments."""
        before, found = sentences(text)
        found = [replace(one, text=_unwrapped(one.text)) for one in found]
        pieces: list[Sentence] = []
        sizes: list[int] = []
        for sentence, size in zip(found, self._sizes(found), strict=True):
            parts = [sentence] if size <= self._room else self._parts(sentence)
            pieces += parts
            sizes += [size] if size <= self._room else self._sizes(parts)
        segments: list[Segment] = []
        group: list[Sentence] = []
        used = 0
        for piece, size in zip(pieces, sizes, strict=True):
            if group and (group[-1].breaks or self._way == "sentences" or used + 1 + size > self._room):
                segments.append(_joined(group))
                group, used = [], 0
            used += size + bool(group)  # a sentence can take another token behind others than alone
            group.append(piece)
        if group:
            segments.append(_joined(group))
        return before, segments

    def _parts(self, sentence: Sentence) -> list[Sentence]:
        """A sentence that is too long, cut."""
        text, ends = sentence.text, self._tokenizer.ends(sentence.text)
        room = max(1, self._room - 1)  # a part can take another token than the same text within the sentence
        parts: list[Sentence] = []
        start = first = 0
        while len(ends) - first > room:
            cut = _place(text, start, ends[first + room - 1])
            while first < len(ends) - 1 and ends[first] <= cut:
                first += 1
            bare = text[start:cut].rstrip()
            if bare:
                parts.append(Sentence(bare, text[start + len(bare) : cut], False))
            start = cut
        return [*parts, replace(sentence, text=text[start:])]

    def _sizes(self, found: Sequence[Sentence]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode([one.text for one in found], special=False)]


def _joined(group: Sequence[Sentence]) -> Segment:
    inner = "".join(one.text + one.after for one in group[:-1])
    return Segment(_unwrapped(inner) + group[-1].text, group[-1].after)


def _unwrapped(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)


def _place(text: str, start: int, end: int) -> int:
    """Where to cut between `start` and `end`: behind a clause in the second half, behind a word, or at the end."""
    end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    clauses = [m.end() for m in _CLAUSE.finditer(text, start + (end - start) // 2, end)]
    if clauses:
        return clauses[-1]
    spaces = [m.end() for m in re.finditer(r"\s+", text[start:end])]
    return start + spaces[-1] if spaces else max(end, start + 1)


@dataclass(frozen=True)
class Sentence:
    """text: without space around it. after: the space that follows. breaks: True where a line or paragraph ends with it."""

    text: str
    after: str
    breaks: bool


def sentences(text: str) -> tuple[str, list[Sentence]]:
    """The space before the text, and its sentences: joined with what is after them they are the text."""
    body = text.lstrip()
    found: list[Sentence] = []
    for line, after in _lines(body):
        cuts = [0, *_ends(line), len(line)]
        for start, end in zip(cuts, cuts[1:], strict=False):
            part = line[start:end]
            bare = part.rstrip()
            if bare:
                found.append(Sentence(bare, part[len(bare) :], False))
        last = found.pop()
        found.append(Sentence(last.text, last.after + after, True))
    return text[: len(text) - len(body)], found


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines with the space behind them; wrapped ones are one, with their line ends inside."""
    start = line = 0
    for match in _BREAK.finditer(text):
        before, space = text[line : match.start()], match.group()
        wrapped = space.count("\n") == 1 and len(before) >= WRAPPED and before[-1] not in ".!?…:"
        if not wrapped or _LISTED.match(text, match.end()):
            yield text[start : match.start()], space
            start = match.end()
        line = match.end()
    if start < len(text):
        bare = text[start:].rstrip()
        yield bare, text[start + len(bare) :]


def _ends(line: str) -> Iterator[int]:
    for match in _END.finditer(line):
        following = _SPACE.match(line, match.end()).end()  # type: ignore[union-attr]
        first = line[following : following + 2].lstrip("\"'“‘«([¿¡—–-")[:1]
        if not first.islower() and _closes(line[max(0, match.start() - 32) : match.start()], match.group(), first):
            yield following


def _closes(before: str, marks: str, following: str) -> bool:
    """False where a point belongs to an abbreviation, an initial, or a short number that may count something."""
    if marks[0] != "." or marks.startswith(".."):
        return True
    found = _LAST_WORD.search(before)
    word = found.group() if found else ""
    single = len(word) == 1 and word.isupper() and word != "I"
    counted = following.isdigit() and word.lower() in ("no", "nos")
    return not (word.lower() in _ABBREVIATIONS or single or counted or (word.isdigit() and len(word) < 3))
