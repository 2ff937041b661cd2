"""The journal of a search keeps its measurements in a file, so that an interrupted search goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxport.errors import OutputError

STATE = "measured.json"


class Journal:
    """Measurements by section and name, kept at `folder` while `key` (model, data, versions) is the same."""

    def __init__(self, folder: Path, key: str) -> None:
        self._file = folder / STATE
        self._state: dict[str, Any] = {"key": key}
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(state, dict) and state.get("key") == key:
            self._state = state

    def __len__(self) -> int:
        return sum(len(section) for name, section in self._state.items() if name != "key")

    def has(self, section: str, name: str) -> bool:
        """Whether `get` would answer without measuring."""
        return name in self._state.get(section, {})

    def get(self, section: str, name: str, measure: Callable[[], Any]) -> Any:
        """The kept measurement, or what `measure` gives, which is then kept.

        Raises:
            OutputError: the file cannot be written.
        """
        known = self._state.setdefault(section, {})
        if name not in known:
            known[name] = measure()
            self._save()
        return known[name]

    def _save(self) -> None:
        beside = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(self._state), encoding="utf-8")
            os.replace(beside, self._file)
        except OSError as error:
            raise OutputError(f"cannot write {self._file}: {error.strerror or error}; free space or choose another folder") from error

    def forget(self) -> None:
        """Remove the file: the search is done."""
        for file in (self._file, self._file.with_suffix(".part")):
            file.unlink(missing_ok=True)
        if self._file.parent.is_dir() and not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()
