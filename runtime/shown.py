"""How models and results show themselves: a short line in a console, a table in a notebook."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping
from typing import Any

_MOST = 8  # members of a list or mapping that are shown
_LONGEST = 200  # characters of a text that are shown


class Shown:
    """For dataclasses (with `repr=False`): fields that are as by default are left out, long values cut, numbers rounded to four digits."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in self._shown())})"

    def _repr_html_(self) -> str:
        return table(self._shown())

    def _shown(self) -> Iterable[tuple[str, Any]]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            if made is dataclasses.MISSING or value != made:
                yield field.name, value


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values in HTML; every text in it is escaped."""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{_html(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _html(value: Any) -> str:
    if isinstance(value, str):
        return html.escape(_cut(value)).replace("\n", "<br>")
    if isinstance(value, Shown):
        return value._repr_html_()
    return html.escape(_short(value))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(_cut(value))
    if isinstance(value, Mapping):
        return "{" + _members([f"{_short(name)}: {_short(one)}" for name, one in _first(value.items())], len(value)) + "}"
    if isinstance(value, list | tuple):
        inner = _members([_short(one) for one in _first(value)], len(value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    shape = getattr(value, "shape", None)
    return f"array of {'×'.join(map(str, shape))} {value.dtype}" if isinstance(shape, tuple) and shape else repr(value)


def _first(values: Iterable[Any]) -> list[Any]:
    return [value for value, _ in zip(values, range(_MOST), strict=False)]


def _members(shown: list[str], count: int) -> str:
    return ", ".join(shown + ([f"… {count} in all"] if count > len(shown) else []))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
