"""Callers that give up beside callers that do not: every answer must be what it is alone, and only who gave up may get an error.

python benchmarks/soak.py artifacts/en-de test.tsv --seconds 600 --callers 8

Use fp32: dynamically quantized activations are scaled by the whole batch, so that there an answer may depend on its company.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxport.compare.data import read_data
from onnxport.errors import Cancelled, GenerationTimeout
from onnxport.runtime import Model, load

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"beam": 1},
    "beams": {"beam": 4},
    "best": {"beam": 3, "n_best": 3},
    "samples": {"temperature": 1.2, "top_k": 40, "seed": 7},
    "penalty": {"beam": 1, "repetition_penalty": 1.3, "no_repeat_ngram": 3},
    "stream": {"beam": 1},
}
SAME = 1e-3  # of scores of two different answers: a tie, which the last digit of a sum can turn


@dataclass(frozen=True)
class Call:
    """A way to answer some texts."""

    way: str
    texts: tuple[str, ...]
    tokens: int

    def __call__(self, model: Model, **giving_up: Any) -> list[Any]:
        options = WAYS[self.way] | {"max_new_tokens": self.tokens} | giving_up
        if self.way != "stream":
            return model.generate(self.texts, **options)
        stream = model.stream(self.texts[0], **options)
        text = "".join(stream)
        assert stream.result is not None and text == stream.result.text
        return [stream.result]


def made(texts: list[str], draw: random.Random, count: int) -> list[Call]:
    """Calls of all ways: of one text or a few, short and long."""
    ways = list(WAYS)
    return [Call(ways[i % len(ways)], tuple(draw.sample(texts, draw.choice((1, 1, 2, 5)))), draw.choice((4, 24, 64))) for i in range(count)]


@contextmanager
def giving_up(draw: random.Random, usual: float) -> Iterator[dict[str, Any]]:
    """Options of a call: most give up, at once or after a while, by a time limit or a flag that another thread sets."""
    kind = draw.choice(("patient", "timeout", "cancel", "cancelled before"))
    if kind == "timeout":
        yield {"timeout": draw.uniform(1e-6, 2 * usual)}
        return
    flag = threading.Event()
    timer = threading.Timer(draw.uniform(0, 2 * usual), flag.set)
    if kind == "cancelled before":
        flag.set()
    if kind == "cancel":
        timer.start()
    yield {} if kind == "patient" else {"cancel": flag}
    timer.cancel()


def judged(found: list[Any], expected: list[Any]) -> str:
    """ "right", "tie" or "wrong"."""
    verdict = "right"
    for one, other in zip(found, expected, strict=True):
        if (one.text, one.tokens, one.finish_reason) != (other.text, other.tokens, other.finish_reason):
            verdict = "tie" if abs(one.score - other.score) <= SAME and verdict != "wrong" else "wrong"
    return verdict


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--callers", type=int, default=8, show_default=True)
@click.option("--seconds", type=float, default=600, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--calls", type=int, default=60, show_default=True, help="Different calls.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(bundle: Path, data: Path, precision: str, callers: int, seconds: float, threads: int, calls: int, seed: int) -> None:
    texts = read_data(data).grouped().limited(60).inputs
    draw, counts, errors, lock = random.Random(seed), Counter[str](), Counter[str](), threading.Lock()
    with load(bundle, precision=precision, threads=threads) as model:
        every = made(list(texts), draw, calls)
        began = time.monotonic()
        alone = {call: call(model) for call in every}
        usual = callers * (time.monotonic() - began) / len(every)
        end = time.monotonic() + seconds

        def caller(mine: random.Random) -> None:
            while time.monotonic() < end:
                call = mine.choice(every)
                with giving_up(mine, usual) as options:
                    try:
                        outcome = judged(call(model, **options), alone[call])
                    except (Cancelled, GenerationTimeout) as error:
                        outcome = "gave up" if options else f"innocent: {type(error).__name__}"
                    except Exception as error:
                        outcome = f"innocent: {type(error).__name__}: {error}"
                with lock:
                    counts[outcome.partition(":")[0]] += 1
                    counts[f"{call.way}, {outcome.partition(':')[0]}"] += 1
                    errors[outcome] += outcome.startswith("innocent")

        workers = [threading.Thread(target=caller, args=(random.Random(f"{seed} {i}"),)) for i in range(callers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for name, count in sorted(counts.items()):
        click.echo(f"{name}: {count}")
    for name, count in (+errors).items():
        click.echo(f"{name} ({count} times)")
    wrong = counts["wrong"] + counts["innocent"]
    click.echo(f"{callers} callers, {seconds:.0f} s: {counts['wrong']} wrong answers, {counts['innocent']} innocent errors")
    raise SystemExit(3 if wrong else 0)


if __name__ == "__main__":
    main()
