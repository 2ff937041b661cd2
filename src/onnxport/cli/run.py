"""The `run` command answers texts from arguments or standard input, and arrays from an .npz file."""

import json
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxport.cli.console import StageLines, emit_answer, emit_json
from onnxport.cli.run_tasks import OTHER_OPTIONS, Task, generated, task_of
from onnxport.errors import DataError, TextError, UsageError, one_line
from onnxport.files import MOST, read_regular
from onnxport.runtime import Model, load
from onnxport.runtime.arrays import npz_bytes, read_npz
from onnxport.runtime.bundle.publish import check_file, write_file

CHUNK = 64  # lines answered together when they are already there
LONGEST = 1 << 24  # bytes of a line


def answer(
    bundle: Path,
    texts: tuple[str, ...],
    *,
    precision: str | None,
    draft: str | None,
    device: str,
    threads: int | None,
    stream: bool,
    chat: bool,
    npz: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool = False,
    **options: Any,
) -> None:
    """Answer texts or arrays and print the results; every option is the command's.

    options: those of the model's own methods, None, False or () where the user left them out.
    """
    if out is not None and npz is None:
        raise UsageError("--out goes with --npz: texts are answered on standard output")
    if npz is not None and (texts or stream):
        raise UsageError("--npz takes its inputs from the file: leave TEXT and --stream out")
    if npz is not None and (wrong := _named(options | {"chat": chat})):
        raise UsageError(f"{_flags(wrong)}: --npz takes arrays as they are; leave out what is for texts")
    with load(bundle, precision=precision, device=device, threads=threads, draft=draft) as model:
        if npz is not None or model.task == "tensor":
            if npz is None or out is None:
                raise UsageError(f"the task of {bundle} is {model.task}: expected --npz IN.npz --out OUT.npz")
            run_arrays(model, npz, out, force, as_json)
            return
        task = task_of(model, chat)
        options = _task_options(model, task, options)
        if stream:
            _stream(model, task, texts, as_json, options)
        elif "long" in options:
            _answer_long(model, texts, as_json, options)
        else:
            _answer_all(model, task, texts, as_json, options, quiet)


def _task_options(model: Model, task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user named. UsageError for those that the task does not take."""
    named = _named(options)
    wrong = [name for name in named if (name in OTHER_OPTIONS if task.options is None else name not in task.options)]
    if wrong:
        lacking = "generates no text" if task.options is not None and not OTHER_OPTIONS & set(wrong) else "has no use for it"
        raise UsageError(f"{_flags(wrong)}: the task of this bundle is {model.task}, which {lacking}")
    if (path := named.pop("json_schema", None)) is not None:
        named["response_format"] = {"type": "json_schema", "json_schema": _schema(path)}
    return named


def _schema(path: Path) -> Any:
    """What a JSON file holds. DataError for one that cannot be read."""
    try:
        return json.loads(read_regular(path, MOST))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give --json-schema a file with a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON schema ({one_line(error, 200)}); expected a file with a JSON object") from None


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user did not leave out."""
    return {name: value for name, value in options.items() if value is not None and value is not False and value != ()}


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))


def _answers(model: Model, task: Task, texts: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """One result a text; a blank text has an empty one."""
    inputs = [task.parse(text) for text in texts if text.strip()]
    results = iter(task.answer(model, inputs, options) if inputs else ())
    return [next(results) if text.strip() else dict(task.blank) for text in texts]


def _answer_lines(model: Model, task: Task, start: int, texts: list[str], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Results of lines `start` and on; where one is refused, those before it are still answered, and the line is named."""
    try:
        yield from _answers(model, task, texts, options)
    except (TextError, DataError) as error:
        if len(texts) == 1:
            raise type(error)(f"line {start} of standard input: {error}") from None
        for offset, text in enumerate(texts):
            yield from _answer_lines(model, task, start + offset, [text], options)


def _answer_all(model: Model, task: Task, texts: tuple[str, ...], as_json: bool, options: dict[str, Any], quiet: bool) -> None:
    results: list[dict[str, Any]] = []
    answers = (
        iter(_answers(model, task, list(texts), options))
        if texts
        else (answer for start, chunk in _counted(standard_input(), quiet) for answer in _answer_lines(model, task, start, chunk, options))
    )
    for result in answers:
        if as_json:
            results.append(result)
        else:
            emit_answer(task.format(result))
    if as_json:
        emit_json({"results": results})


def _counted(descriptor: int, quiet: bool) -> Iterator[tuple[int, list[str]]]:
    """`lines`, with progress where standard input is a file, so that its length is known, and the answers are not on the screen already."""
    size = os.fstat(descriptor).st_size if stat.S_ISREG(os.fstat(descriptor).st_mode) else 0
    if quiet or not size or sys.stdout.isatty():
        yield from lines(descriptor)
        return
    done = os.lseek(descriptor, 0, os.SEEK_CUR)
    with StageLines(quiet, finished=False) as progress:
        for start, chunk in lines(descriptor):
            progress(f"answering, bytes of standard input ({done} of {size})")
            yield start, chunk
            done += sum(len(line.encode()) + 1 for line in chunk)


def _answer_long(model: Model, texts: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """Whole texts, or the whole of standard input as one: their lines stay."""
    whole = list(texts) or ["\n".join(line for _, chunk in lines(standard_input()) for line in chunk)]
    results = [generated(result, long=True) for result in model.generate(whole, **options)]
    if as_json:
        emit_json({"results": results})
    else:
        for result in results:
            emit_answer(result["text"])


def _stream(model: Model, task: Task, texts: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """Pieces as they come; as JSON an object a piece with the text's place, and a last one with the whole result."""
    if task.options is not None:
        raise UsageError(f"--stream: the task of this bundle is {model.task}, which generates no text")
    if wrong := sorted({"long", "n_best"} & set(options)):
        raise UsageError(f"--stream does not go with --{wrong[0].replace('_', '-')}: leave one of them out")
    chunks = [(0, list(texts))] if texts else ((start - 1, chunk) for start, chunk in lines(standard_input()))
    for start, chunk in chunks:
        for index, text in enumerate(chunk, start):
            prompt = task.parse(text) if text.strip() else ""
            pieces = model.stream(model.prompt(prompt) if isinstance(prompt, list) else prompt, **options)
            for piece in pieces:
                if as_json:
                    emit_json({"index": index, "text": piece})
                else:
                    emit_answer(piece, end="")
            if as_json:
                emit_json({"index": index, "result": generated(pieces.result)})
            else:
                emit_answer("")


def standard_input() -> int:
    """The descriptor of standard input.

    Raises:
        UsageError: it is closed.
    """
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        raise UsageError("standard input is closed: give TEXT, or lines on standard input") from None


def lines(descriptor: int) -> Iterator[tuple[int, list[str]]]:
    """Lines of a UTF-8 stream in lists with the number of their first: what is there already comes together, at most CHUNK lines.

    Raises:
        TextError: a line is not UTF-8 or longer than LONGEST bytes; the lines before it come first.
    """
    number, rest, ended = 1, bytearray(), False
    while not ended:
        waiting = 0
        while not ended and waiting < CHUNK and (waiting == 0 or select.select([descriptor], [], [], 0)[0]):
            data = os.read(descriptor, 1 << 16)
            ended = not data
            waiting += data.count(b"\n")
            rest += data
            if len(rest) > LONGEST and not waiting:
                raise TextError(f"line {number} of standard input is longer than {LONGEST >> 20} MiB: split the text into lines")
        whole = bytes(rest).split(b"\n")
        rest = bytearray() if ended else bytearray(whole.pop())
        if ended and not whole[-1]:
            whole.pop()
        for start in range(0, len(whole), CHUNK):
            yield from _decoded(whole[start : start + CHUNK], number + start)
        number += len(whole)


def _decoded(whole: list[bytes], number: int) -> Iterator[tuple[int, list[str]]]:
    texts: list[str] = []
    for offset, line in enumerate(whole):
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            if texts:
                yield number, texts
            found = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
            raise TextError(f"line {number + offset} of standard input is not UTF-8 ({found}): convert it, e.g. with iconv") from None
        texts.append(text.removeprefix("\ufeff") if number + offset == 1 else text)
    yield number, texts


def run_arrays(model: Model, source: Path, out: Path, force: bool, as_json: bool = False) -> None:
    """Runs the arrays of an .npz file and writes the outputs to another, whole or not at all."""
    check_file(out, force)
    inputs = read_npz(source, DataError, "write it with numpy.savez")
    outputs = model.run(inputs)
    write_file(out, npz_bytes(outputs), force)
    if as_json:
        emit_json({"outputs": {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in outputs.items()}})
