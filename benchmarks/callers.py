"""Many callers at once: threads that each translate one text at a time, sharing a model's batches, against one call after the other.

python benchmarks/callers.py artifacts/en-de test.tsv --callers 8
"""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click

from onnxport.compare.data import read_data
from onnxport.runtime import load


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="int8", show_default=True)
@click.option("--callers", type=int, default=8, show_default=True)
@click.option("--limit", type=int, default=160, show_default=True, help="Texts, evenly spaced.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(bundle: Path, data: Path, precision: str, callers: int, limit: int, threads: int, rounds: int) -> None:
    texts = read_data(data).grouped().limited(limit).inputs
    with load(bundle, precision=precision, threads=threads) as model:

        def work(mine: list[str], answers: list[str | None]) -> None:
            answers += [model.generate(text, beam=1)[0].text for text in mine]

        def timed(parts: list[list[str]]) -> tuple[float, list[str | None]]:
            found: list[list[str | None]] = [[] for _ in parts]
            workers = [threading.Thread(target=work, args=pair) for pair in zip(parts, found, strict=True)]
            started = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return time.perf_counter() - started, [answer for part in found for answer in part]

        parts = [texts[i::callers] for i in range(callers)]
        ways: dict[str, Callable[[], tuple[float, list[str | None]]]] = {
            "one caller": lambda: timed([[text for part in parts for text in part]]),
            f"{callers} callers": lambda: timed(parts),
        }
        runs = {name: [way() for _ in range(1)] for name, way in ways.items()}
        for _ in range(rounds):
            for name, way in ways.items():
                runs[name].append(way())
    (alone, first), (shared, second) = ((statistics.median(s for s, _ in done[1:]), done[-1][1]) for done in runs.values())
    same = sum(one == other for one, other in zip(first, second, strict=True))
    for name, seconds in zip(runs, (alone, shared), strict=True):
        click.echo(f"{name}: {len(texts) / seconds:.1f} texts/s")
    click.echo(f"ratio {alone / shared:.2f}; {same} of {len(texts)} answers are the same")


if __name__ == "__main__":
    main()
