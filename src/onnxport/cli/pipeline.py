"""The `pipeline` command: what a file stands for is checked whole, then done, step by step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxport.build import add_variant, build
from onnxport.build.contents import VERSIONED, versions
from onnxport.build.stages import READERS
from onnxport.build.work import described, folder_hashes
from onnxport.cli.console import StageLines, emit, emit_json
from onnxport.cli.overview import end_for_failed, notes, report_folder, show_bundle, show_report, summary
from onnxport.cli.pipeline_checks import check, variant_of
from onnxport.cli.pipeline_file import EXPORT, QUANTIZE, Step
from onnxport.compare import compare
from onnxport.errors import UsageError
from onnxport.printable import printable
from onnxport.progress import Progress
from onnxport.runtime.bundle.reader import Bundle

if TYPE_CHECKING:
    from onnxport.compare import Report

_NO_CONTENT = {"force", "keep_going", "resume", "out", "route"}  # options that change nothing of the outputs


def run(file: Path, steps: Sequence[Step], *, dry_run: bool, key: bool, as_json: bool, quiet: bool) -> None:
    """Check the steps of a file and do them; with `dry_run` and `key` print the commands, or a hash of what they read, and do nothing."""
    if key:
        value = content_key(steps)
        emit_json({"key": value}) if as_json else emit(value)
        return
    check(file, steps)
    if dry_run:
        emit_json({"commands": [str(step) for step in steps]}) if as_json else emit("\n".join(map(str, steps)))
        return
    done = Done()
    with StageLines(quiet) as progress:
        for step in steps:
            if done.bundle is None or not done.bundle.failed:  # as a script ends with the first command that fails
                _do(step, done, progress)
    if done.bundle is not None and not quiet:
        for note in notes(done.bundle):
            click.echo(printable(f"note: {note}"), err=True)
    try:
        done.show(as_json)
    finally:  # what failed counts even when nobody reads the tables to their ends
        if done.bundle is not None:
            end_for_failed(done.bundle)
        if done.report is not None:
            done.report.raise_for_gates()


@dataclass
class Done:
    """What steps made: the bundle as it is after them, and the report, which is in `folder`."""

    bundle: Bundle | None = None
    report: Report | None = None
    folder: Path = Path()

    def show(self, as_json: bool) -> None:
        """Prints it."""
        if as_json:
            emit_json({"bundle": self.bundle and summary(self.bundle), "report": self.report and self.report.as_dict()})
            return
        if self.bundle is not None:
            show_bundle(self.bundle, as_json, with_notes=False)
        if self.report is not None:
            show_report(self.report, self.folder)


def _do(step: Step, done: Done, progress: Progress) -> None:
    given = dict(step.params)
    if step.command == EXPORT:
        done.bundle = build(given.pop("source"), given.pop("out"), **given, progress=progress)
    elif step.command == QUANTIZE:
        del given["precision"], given["target"]
        done.bundle = add_variant(given.pop("bundle"), variant_of(step), **given, progress=progress)
    else:
        bundle, batches = given.pop("bundle"), given.pop("batch")
        done.folder = given["out"] = report_folder(given["out"], bundle)
        done.report = compare(bundle, batches=batches, **given, progress=progress)


def content_key(steps: Sequence[Step]) -> str:
    """SHA-256 of all that the outputs depend on: the commands, the content of every file and folder that they read, and versions.

    Where outputs go does not count, nor do options that change nothing of them. UsageError: a source is code, whose content no file tells.
    """
    made = any(step.command == EXPORT for step in steps)
    found: list[Any] = [versions((*VERSIONED, *READERS))]
    for step in steps:
        given = {name: value for name, value in step.params.items() if name not in _NO_CONTENT}
        place = given.pop("bundle", None)
        source = given.get("source")
        if source is not None:
            if not os.path.exists(source):
                raise UsageError(f"{step.name}: {source} is neither a file nor a folder, so no key tells its content; give a folder")
            given["source"] = Path(source)
        entry = described({name: value for name, value in given.items() if not isinstance(value, tuple)})
        entry |= {name: [described({"": one})[""] for one in value] for name, value in given.items() if isinstance(value, tuple)}
        found.append([step.command, entry, None if made or place is None else folder_hashes(place)])
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
