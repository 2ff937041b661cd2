"""The models that a server answers from, by their names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnxport.errors import UsageError
from onnxport.progress import Progress, silent
from onnxport.runtime import Model, load
from onnxport.runtime.bundle import signature
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.decode.generator import DEFAULT_NEW_TOKENS
from onnxport.serve.errors import ApiError

VERSION = "1"  # of every model, in KServe's protocol


@dataclass(frozen=True)
class Served:
    """A loaded model with its name. created: Unix time, seconds."""

    name: str
    model: Model
    created: int

    @cached_property
    def template(self) -> str:
        """The text of its chat template, "" without one."""
        chat = self.model.bundle.chat
        return "" if chat is None else self.model.bundle.content(chat.template).decode("utf-8", "replace")

    def new_tokens(self, asked: int | None) -> int:
        """The most new tokens of an answer, as far as it is known before its input is read; 0 of a model that does not generate.

        asked: what a request allows; None where it does not say.
        """
        own = self.model.bundle.generation
        return 0 if own is None else max(asked or own.max_new_tokens or DEFAULT_NEW_TOKENS, 0)


class Models:
    """Served models, each under one name."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._by_name: dict[str, Served] = {}
        for one in models:
            if one.name in self._by_name:
                raise UsageError(f"two bundles are named {one.name!r}; name them apart, as in other={one.model.bundle.path}")
            self._by_name[one.name] = one

    @classmethod
    def open(
        cls, bundles: Sequence[str], precision: str | None, device: str, threads: int | None, prefix_cache_mb: int | None = None,
        progress: Progress = silent, require_signature: Path | None = None,
        batch_rows: int | None = None, batch_cache_mb: int | None = None,
    ) -> Models:  # fmt: skip
        """Load bundles, `PATH` or `NAME=PATH`, and check every file's hash. prefix_cache_mb: for those that are language models.
        batch_rows, batch_cache_mb: for those that generate.
        require_signature: a public key, or certificates of authorities, that every bundle must be signed by.

        Errors: as `onnxport.runtime.load`; UsageError for a name that comes twice.
        """
        found = []
        for given in bundles:
            name, path = _named(given)
            progress(f"loading {path}")
            bundle = Bundle.read(path)
            if require_signature is not None:
                signature.check(bundle, require_signature)
            generates = bundle.generation is not None
            model = load(
                path, precision=precision, device=device, threads=threads, verify=True,
                prefix_cache_mb=prefix_cache_mb if bundle.task == "text-generation" else None,
                batch_rows=batch_rows if generates else None, batch_cache_mb=batch_cache_mb if generates else None,
            )  # fmt: skip
            if require_signature is not None:
                signature.check(model.bundle, require_signature)  # what was loaded is what was signed
            found.append(Served(name or model.bundle.name, model, int(time.time())))
        return cls(found)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._by_name.values())

    def find(self, name: str) -> Served:
        """A model by its name. ApiError (404) names those that there are."""
        if name not in self._by_name:
            some = ", ".join(list(self._by_name)[:20])
            raise ApiError(404, f"model {name!r:.60} is not here, this server has {some}", param="model", code="model_not_found")
        return self._by_name[name]

    def close(self) -> None:
        """Free all of them."""
        for one in self:
            one.model.close()


def _named(given: str) -> tuple[str | None, Path]:
    """The name, if one is given, and the path of `PATH` or `NAME=PATH`."""
    name, equals, rest = given.partition("=")
    if not equals or "/" in name or Path(given).exists():
        return None, Path(given)
    if not name or not rest:
        raise UsageError(f"found {given!r}, expected BUNDLE or NAME=BUNDLE")
    return name, Path(rest)
