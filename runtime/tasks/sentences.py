"""Text in sentences that joined are the text again, by rules: where it is not sure, two sentences stay one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
