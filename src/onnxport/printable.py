"""Texts of strangers, such as names of bundles, labels and files, as a terminal may be sent them."""

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end: a terminal obeys them
_HIDDEN = re.compile(CONTROL.pattern[:-1] + r"\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # what turns text around, and what is none


def printable(text: str) -> str:
    """The text with control characters, and what turns text around, as escapes (\\x1b)."""
    return _HIDDEN.sub(escaped, text)


def escaped(found: re.Match[str]) -> str:
    """The escape of what an expression found: one character."""
    return ascii(found[0])[1:-1]
