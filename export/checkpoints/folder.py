"""Folders of Hugging Face that need work before they are plain: quantized ones are expanded, adapters merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxport.export.checkpoints import lora, plain, quantized
from onnxport.export.source import Source
from onnxport.export.weights import read_hugging_face_weights


@dataclass(frozen=True)
class Opened:
    """A folder whose weights are plain, its config, and what makes its Source that of the user's own folder."""

    folder: Path
    config: dict[str, Any]
    finish: Callable[[Source], Source] = lambda source: source


@contextmanager
def opened(folder: Path, config: Mapping[str, Any], allow_pickle: bool, adapter: Path | None = None) -> Iterator[Opened]:
    """The folder itself where it is plain and no adapter is merged, else a plain form of it while the context lasts.

    adapter: a folder of PEFT. Errors: CheckpointError, OutputError.
    """
    with ExitStack() as stack:
        found = Opened(folder, dict(config))
        if (settings := quantized.settings_of(folder, config)) is not None:
            found = stack.enter_context(_expanded(found, settings, allow_pickle))
        if adapter is not None:
            found = stack.enter_context(_merged(found, adapter, allow_pickle))
        yield found


@contextmanager
def _expanded(before: Opened, settings: Mapping[str, Any], allow_pickle: bool) -> Iterator[Opened]:
    files = read_hugging_face_weights(before.folder, allow_pickle)
    config = {name: value for name, value in before.config.items() if name not in quantized.SETTINGS}
    with plain.scratch(before.folder) as made:
        plain.write(made, before.folder, config, quantized.expanded(files, config, settings))
        notes = tuple(quantized.notes(settings))

        def finish(source: Source) -> Source:
            quantization = {"quantization": settings["quant_method"]}
            return before.finish(plain.as_from(source, before.folder, files.paths, notes, **quantization))

        yield Opened(made, config, finish)


@contextmanager
def _merged(before: Opened, adapter: Path, allow_pickle: bool) -> Iterator[Opened]:
    files = read_hugging_face_weights(before.folder, allow_pickle)
    merged = lora.merge(files, before.config, adapter, allow_pickle)
    with plain.scratch(before.folder) as made:
        plain.write(made, before.folder, merged.config, merged.tensors)

        def finish(source: Source) -> Source:
            named = plain.as_from(source, before.folder, files.paths, merged.notes, adapter=dict(merged.settings))
            return before.finish(merged.hashed(named))

        yield Opened(made, merged.config, finish)
