"""Two bundles of one model, by two routes of the exporter: decoding and prefill in turn, and whether the tokens are the same.

    onnxport export FOLDER --precision fp32 --out canonical
    onnxport export FOLDER --precision fp32 --out traced --route attention-interface
    python benchmarks/routes.py canonical traced --threads 2

Prints for each number of rows how many times as fast the second bundle is: the median of the ratios round by round, with their least and
greatest. Both make the same number of tokens.
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from onnxport.runtime import Model, load

CASES = ((1, 16, 32), (8, 16, 32), (1, 512, 1))  # rows, ids of each prompt, new tokens


@click.command(help=__doc__)
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True)
@click.option("--cpu", is_flag=True, help="Time of the processor, for a machine with other work.")
def main(first: Path, second: Path, precision: str, threads: int, rounds: int, cpu: bool) -> None:
    clock = time.process_time if cpu else time.perf_counter
    models = [load(path, precision=precision, threads=threads) for path in (first, second)]
    for rows, length, new in CASES:
        ids = np.random.default_rng(0).integers(10, 1000, (rows, length)).tolist()
        answers = [tokens(model, ids, new) for model in models]  # the first run of each shape is slow
        ratios = []
        for _ in range(rounds):
            taken = [timed(clock, model, ids, new) for model in models]
            ratios.append(taken[0] / taken[1])
        same = sum(one == other for one, other in zip(*answers, strict=True))
        click.echo(
            f"{rows} rows of {length} ids, {new} new: {np.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"{same} of {rows} answers equal"
        )


def tokens(model: Model, ids: list[list[int]], new: int) -> list[list[int]]:
    return [list(result.tokens) for result in model.generate(ids, min_new_tokens=new, max_new_tokens=new)]


def timed(clock: Callable[[], float], model: Model, ids: list[list[int]], new: int) -> float:
    begun = clock()
    tokens(model, ids, new)
    return clock() - begun


if __name__ == "__main__":
    main()
