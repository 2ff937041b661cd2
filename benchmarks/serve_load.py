"""Load on `onnxport serve`: patient clients beside such that leave, read slowly or send nonsense; memory and every answer are looked at.

python benchmarks/serve_load.py artifacts/en-de examples/en-de/test-200.tsv --clients 50 --seconds 600
python benchmarks/serve_load.py artifacts/smollm2 examples/en-de/test-200.tsv --peer models/smollm2

Three measurements, one after the other: the texts in one call of a process; patient clients alone; the same number of clients, of which
half behave badly. --peer: a Llama folder, which llama.cpp's server (llama-cpp-python[server] of --peer-python) answers patient clients
from, in float32.
Ends with exit code 1 where an answer is wrong, a bad request is not refused, or memory grows.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from peers import llama_cpp

from onnxport.runtime import Generation, load

TIE = 5e-3  # of the log-probabilities of two different answers: a near tie, which the last digit of a sum can turn
GROWTH = 0.05  # of the memory between the second quarter of a run and the last
REFUSED = {400, 404, 405, 408, 413, 415, 429}
PATH = "/v1/completions"


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Answer:
    """status: 0 where there was none. text: of all events. seconds: to the first event, and to the end."""

    status: int = 0
    text: str = ""
    logprob: float = 0.0
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0


@dataclass
class Seen:
    """What clients saw."""

    answers: list[Answer] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)  # bytes, once a second
    seconds: float = 0.0

    def line(self, name: str) -> dict[str, Any]:
        """Figures of a measurement."""
        times = sorted(one.seconds for one in self.answers) or [0.0]
        firsts = sorted(one.first for one in self.answers) or [0.0]
        return {
            "measurement": name,
            "answers": len(self.answers),
            "tokens_per_s": round(sum(one.tokens for one in self.answers) / max(self.seconds, 1e-9), 1),
            "p50_ms": round(1000 * times[len(times) // 2]),
            "p99_ms": round(1000 * times[min(len(times) - 1, int(0.99 * len(times)))]),
            "first_p50_ms": round(1000 * firsts[len(firsts) // 2]),
            "memory_mb": [round(one / 1e6) for one in self.memory[:: max(1, len(self.memory) // 8)]],
            "outcomes": dict(sorted(self.outcomes.items())),
        }

    @property
    def growth(self) -> float:
        """The share by which memory grew from the second quarter of the run to the last."""
        quarter = len(self.memory) // 4
        if not quarter:
            return 0.0
        return statistics.median(self.memory[-quarter:]) / statistics.median(self.memory[quarter : 2 * quarter]) - 1


@dataclass(frozen=True)
class Load:
    """What clients do. expected: a text's answer, as the model gives it alone; empty for a peer."""

    port: int
    model: str
    texts: list[str]
    tokens: int
    expected: dict[str, Generation]

    def body(self, text: str, stream: bool) -> bytes:
        """A good request."""
        greedy = {"temperature": 0} if not self.expected else {"beam": 1, "logprobs": 0}
        return json.dumps({"model": self.model, "prompt": text, "max_tokens": self.tokens, "stream": stream, **greedy}).encode()

    async def opened(
        self, body: bytes, length: int | None = None, method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has sent a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{method} {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
        with suppress(ConnectionError):  # refused before it was sent whole
            await writer.drain()
        return reader, writer

    async def answer(self, text: str, stream: bool, slow: float = 0.0) -> Answer:
        """A patient request. slow: seconds between two lines that are read."""
        found, began = Answer(), time.perf_counter()
        reader, writer = await self.opened(self.body(text, stream))
        try:
            found.status = int((await reader.readline()).split()[1])
            async for value in values(reader, stream):
                found.first = found.first or time.perf_counter() - began
                for choice in value.get("choices", ()):
                    found.text += choice["text"]
                    told = (choice.get("logprobs") or {}).get("token_logprobs") or []
                    found.logprob += sum(told)
                    found.tokens += len(told) or (stream and bool(choice["text"]))
                if usage := value.get("usage"):
                    found.tokens = usage["completion_tokens"]
                await asyncio.sleep(slow)
        finally:
            writer.close()
        found.seconds = time.perf_counter() - began
        return found

    def judged(self, text: str, found: Answer) -> str:
        """What an answer is."""
        if found.status != 200:
            return f"status {found.status}"
        expected = self.expected.get(text)
        if expected is None or found.text == expected.text:
            return "right"
        return "tie" if abs(found.logprob - sum(expected.token_logprobs)) < TIE else "wrong"

    async def patient(self, seen: Seen, draw: random.Random, end: float, slow: bool = False) -> None:
        """A client that reads what it asked for."""
        while time.monotonic() < end:
            text, stream = draw.choice(self.texts), slow or draw.random() < 0.5
            try:
                found = await self.answer(text, stream, draw.choice((0.05, 0.3)) if slow else 0.0)
            except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
                seen.outcomes[f"patient: {type(error).__name__}"] += 1
                continue
            seen.outcomes[f"{'slow' if slow else 'patient'}: {self.judged(text, found)}"] += 1
            if not slow and found.status == 200:
                seen.answers.append(found)

    async def leaving(self, seen: Seen, draw: random.Random, end: float) -> None:
        """A client that goes away, at once or in the middle of a stream."""
        while time.monotonic() < end:
            with suppress(OSError):
                reader, writer = await self.opened(self.body(draw.choice(self.texts), draw.random() < 0.7))
                with suppress(TimeoutError):
                    async with asyncio.timeout(draw.choice((0.0, 0.02, 0.2, 1.0))):
                        while await reader.readline():
                            pass
                writer.transport.abort() if draw.random() < 0.5 else writer.close()
                seen.outcomes["left"] += 1

    async def nonsense(self, seen: Seen, draw: random.Random, end: float) -> None:
        """A client that floods the server with what is no request."""
        while time.monotonic() < end:
            kind = draw.choice(("bytes", "json", "members", "method", "huge", "short", "pairs"))
            body, length, method = self.body(draw.choice(self.texts), False), None, "POST"
            if kind == "bytes":
                body = draw.randbytes(draw.choice((1, 100, 5000)))
            elif kind == "json":
                body = draw.choice((b"[" * 50_000, b'{"a": 1e999999', b"null", b'"\\ud800"', body[: draw.randrange(len(body))]))
            elif kind == "members":
                body = json.dumps(
                    {**json.loads(body), draw.choice(("n", "stop", "prompt", "max_tokens", "stream", "beams")): [{}]}
                ).encode()
            elif kind == "method":
                method = draw.choice(("PUT", "DELETE"))
            elif kind == "huge":
                length = 1 << 40
            elif kind == "short":
                length = len(body) + 100
            else:
                body = json.dumps({"model": self.model, "prompt": [self.texts[0]] * 5000}).encode()
            await self._nonsense(seen, kind, body, length, method)

    async def _nonsense(self, seen: Seen, kind: str, body: bytes, length: int | None, method: str) -> None:
        try:
            reader, writer = await self.opened(body, length, method)
            line = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3 if kind == "short" else 60):
                    line = await reader.readline()
            writer.close()
        except OSError:
            seen.outcomes["nonsense: closed"] += 1
            return
        status = int(line.split()[1]) if line.startswith(b"HTTP/") else 0
        good = status in REFUSED or (kind == "short" and not line)
        seen.outcomes["nonsense: refused" if good else f"nonsense: {kind} had {status}"] += 1


async def values(reader: asyncio.StreamReader, stream: bool) -> AsyncIterator[dict[str, Any]]:
    """The JSON values of a response whose status was read: of its events, or of its body."""
    chunked, rest = False, b""
    while (line := await reader.readline()).strip():
        chunked = chunked or line.lower().startswith(b"transfer-encoding: chunked")
    while True:
        if chunked:
            size = int(await reader.readline() or b"0", 16)
            piece = (await reader.readexactly(size + 2))[:size]
        else:
            piece = await reader.read(1 << 16)
        rest += piece
        while stream and b"\n\n" in rest:
            event, rest = rest.split(b"\n\n", 1)
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                yield json.loads(event.removeprefix(b"data: "))
        if not piece:
            break
    if not stream and rest:
        yield json.loads(rest)


async def measured(load: Load, clients: int, seconds: float, rough: bool, process: int, seed: int) -> Seen:
    """Clients for a while. rough: half of them behave badly."""
    seen, began = Seen(), time.monotonic()
    end = began + seconds

    async def memory() -> None:
        while time.monotonic() < end:
            seen.memory.append(resident(process))
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(memory())
        for place in range(clients):
            draw = random.Random(f"{seed} {place}")
            if not rough or place % 2:
                group.create_task(load.patient(seen, draw, end))
            elif place % 6 == 0:
                group.create_task(load.nonsense(seen, draw, end))
            elif place % 6 == 2:
                group.create_task(load.leaving(seen, draw, end))
            else:
                group.create_task(load.patient(seen, draw, end, slow=True))
    seen.seconds = time.monotonic() - began
    return seen


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


@contextmanager
def serving(command: list[str], pattern: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server and its port, which a line of its output names by `pattern`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(pattern, line):
                    break
            else:
                raise click.ClickException(f"the server did not start: {' '.join(command)}")
            yield process, int(found[1])
        finally:
            process.terminate()
            process.stdout.read()


def alone(
    bundle: Path, precision: str | None, threads: int, rows: int, texts: list[str], tokens: int
) -> tuple[dict[str, Any], dict[str, Generation]]:
    """One process that is handed all texts at once, `rows` of them in a batch, at most 32: figures, and the answers."""
    with load(bundle, precision=precision, threads=threads) as model:
        model.generate(texts[:4], beam=1, max_new_tokens=4)
        began = time.perf_counter()
        results = model.generate(texts, beam=1, max_new_tokens=tokens, batch_size=min(rows, 32))
        taken = time.perf_counter() - began
        singles = []
        for text in texts[:20]:
            start = time.perf_counter()
            model.generate(text, beam=1, max_new_tokens=tokens)
            singles.append(time.perf_counter() - start)
    rate = round(sum(len(one.tokens) for one in results) / taken, 1)
    told = {"measurement": "one call", "answers": len(texts), "tokens_per_s": rate, "p50_ms": round(1000 * statistics.median(singles))}
    return told, dict(zip(texts, results, strict=True))


def beside(peer: Path, python: str, threads: int, texts: list[str], tokens: int, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    """Figures of llama.cpp's server with patient clients."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f32.gguf"
        llama_cpp.write(peer, file, "F32", tokenizer=True)
        settings = {"model": file, "port": 8791, "n_threads": threads, "n_threads_batch": threads, "n_ctx": 2048}
        settings["interrupt_requests"] = False  # by default a request ends the stream of another
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        with serving([python, "-m", "llama_cpp.server", *options], r"running on http://localhost:(\d+)") as (process, port):
            load_of_peer = Load(port, "it", texts, tokens, {})
            return asyncio.run(measured(load_of_peer, clients, seconds, False, process.pid, seed)).line("llama.cpp's server")


def faults(seen: Seen) -> list[str]:
    """What is wrong with a run."""
    found = [f"{count} × {what}" for what, count in seen.outcomes.items() if what not in ("left", "nonsense: refused", "nonsense: closed")]
    found = [one for one in found if not one.endswith((": right", ": tie"))]
    return [*found, *([f"memory grew by {seen.growth:.1%}"] if seen.growth > GROWTH else [])]


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--precision")
@click.option("--clients", type=int, default=50, show_default=True)
@click.option("--seconds", type=float, default=600, show_default=True, help="Of each of the two measurements.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--tokens", type=int, default=48, show_default=True, help="Longest answer.")
@click.option("--texts", "count", type=int, default=60, show_default=True, help="Different texts.")
@click.option("--peer", type=click.Path(exists=True, path_type=Path), help="A Llama folder for llama.cpp's server.")
@click.option("--peer-python", default=sys.executable, help="Python that has llama-cpp-python[server].")
@click.option("--out", type=click.Path(path_type=Path), help="The figures as JSON.")
@click.option("--seed", type=int, default=0)
def main(
    bundle: Path, data: Path, precision: str | None, clients: int, seconds: float, threads: int, tokens: int, count: int, peer: Path | None,
    peer_python: str, out: Path | None, seed: int,
) -> None:  # fmt: skip
    lines = data.read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(line.split("\t")[0] for line in lines if line.strip()))[:count]
    told, expected = alone(bundle, precision, threads, clients, texts, tokens)
    figures, wrong = [told], []
    show(told)
    command = [sys.executable, "-m", "onnxport", "serve", f"it={bundle}", "--port", "0", "--threads", str(threads), "-q"]
    with serving(command + (["--precision", precision] if precision else []), r"listening on http://127\.0\.0\.1:(\d+)") as (process, port):
        for name, rough in (("patient clients", False), ("half behave badly", True)):
            given = Load(port, "it", texts, tokens, expected)
            seen = asyncio.run(measured(given, clients, seconds, rough, process.pid, seed))
            figures.append(seen.line(name))
            show(figures[-1])
            wrong += [f"{name}: {one}" for one in faults(seen)]
    if peer is not None:
        figures.append(beside(peer, peer_python, threads, texts, tokens, clients, seconds, seed))
        show(figures[-1])
    if out is not None:
        out.write_text(json.dumps({"figures": figures, "wrong": wrong}, indent=1) + "\n", encoding="utf-8")
    for one in wrong:
        click.echo(f"wrong: {one}")
    sys.exit(bool(wrong))


def show(figures: dict[str, Any]) -> None:
    """A measurement as a line."""
    click.echo("  ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
