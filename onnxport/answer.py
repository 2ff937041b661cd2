"""The `run` command: texts from arguments or standard input, arrays from .npz, answers to standard output."""

import io
import os
import select
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.console import emit, emit_json
from onnxport.errors import DataError, OutputError, TextError, UsageError
from onnxport.runtime import Model, load

GENERATING = {"translation", "summarization", "text2text", "text-generation"}
CHUNK = 64  # lines answered together when they are already there


def answer(
    bundle: Path,
    texts: tuple[str, ...],
    *,
    precision: str | None,
    device: str,
    threads: int | None,
    stream: bool,
    npz: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    **search: Any,
) -> None:
    """Answers and prints; every option is the command's."""
    with load(bundle, precision=precision, device=device, threads=threads) as model:
        if npz is not None or model.task == "tensor":
            if npz is None or out is None:
                raise UsageError(f"the task of {bundle} is {model.task}: expected --npz IN.npz --out OUT.npz")
            run_arrays(model, npz, out, force)
        elif stream:
            _stream(model, texts, as_json, _search(model, search))
        else:
            _answer_all(model, texts, as_json, _search(model, search))


def _search(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; a task that generates nothing takes none of them."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if model.task in GENERATING:
        return given
    changed = {"temperature", "top_k", "top_p", "seed", "stop", "max_new_tokens"} & given.keys()
    if changed:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(changed))
        raise UsageError(f"{names}: the task of this bundle is {model.task}, which generates no text")
    return {}


def _answer(model: Model, texts: list[str], search: dict[str, Any]) -> list[dict[str, Any]]:
    if model.task in GENERATING:
        names = ("text", "tokens", "score", "finish_reason")
        return [{name: getattr(result, name) for name in names} for result in model.generate(texts, **search)]
    return [{"embedding": row.tolist()} for row in model.encode(texts)]


def _answer_all(model: Model, texts: tuple[str, ...], as_json: bool, search: dict[str, Any]) -> None:
    results: list[dict[str, Any]] = []
    for chunk in [list(texts)] if texts else lines(sys.stdin.fileno()):
        answered = _answer(model, chunk, search)
        if as_json:
            results += answered
            continue
        for result in answered:
            emit(" ".join(result["text"].splitlines()) if "text" in result else " ".join(f"{x:.6g}" for x in result["embedding"]))
    if as_json:
        emit_json({"results": results})


def _stream(model: Model, texts: tuple[str, ...], as_json: bool, search: dict[str, Any]) -> None:
    if model.task not in GENERATING:
        raise UsageError(f"--stream: the task of this bundle is {model.task}, which generates no text")
    for chunk in [list(texts)] if texts else lines(sys.stdin.fileno()):
        for index, text in enumerate(chunk):
            for piece in model.stream(text, **search):
                if as_json:
                    emit_json({"index": index, "text": piece})
                else:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            if not as_json:
                emit("")


def lines(descriptor: int) -> Iterator[list[str]]:
    """Lines of a UTF-8 stream in lists: what is there already comes together, up to CHUNK; a line is never waited for in vain.

    Raises:
        TextError: a line is not UTF-8; the line's number is told.
    """
    number, rest, ended = 0, b"", False
    while not ended:
        data = os.read(descriptor, 1 << 16)
        ended = not data
        while not ended and select.select([descriptor], [], [], 0)[0] and rest.count(b"\n") + data.count(b"\n") < CHUNK:
            more = os.read(descriptor, 1 << 16)
            ended = not more
            data += more
        whole = (rest + data).split(b"\n")
        rest = whole.pop()
        if ended and rest:
            whole.append(rest)
        for start in range(0, len(whole), CHUNK):
            chunk = whole[start : start + CHUNK]
            yield [_decode(line, number + start + offset + 1) for offset, line in enumerate(chunk)]
        number += len(whole)


def _decode(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
        raise TextError(f"line {number} of standard input is not UTF-8 ({found}): convert it, e.g. with iconv") from None


def run_arrays(model: Model, source: Path, out: Path, force: bool) -> None:
    """Runs the arrays of an .npz file and writes the outputs to another, whole or not at all."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists: choose another --out or give --force")
    try:
        with np.load(source, allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise DataError(f"{source} does not exist: expected an .npz file of input arrays") from None
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{source} is not a readable .npz file of plain arrays ({error}): write it with numpy.savez") from None
    buffer = io.BytesIO()
    arrays_out: dict[str, Any] = model.run(inputs)
    np.savez(buffer, **arrays_out)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_bytes(buffer.getvalue())
        beside.replace(out)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error.strerror}): free space or choose another --out") from None
    finally:
        beside.unlink(missing_ok=True)
