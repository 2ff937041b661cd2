"""Streams of many threads that share a batch, against one stream after the other, and what a request gets that joins them.

python benchmarks/shared_batches.py artifacts/smollm2 --streams 16

Both sides run in turn in one process. Seconds are of the clock; CPU seconds are of this process, which other work does not lengthen.
"""

import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import click

from onnxport.runtime import Model, load

WORDS = """the river runs past an old mill where children used to play after school and farmers brought their corn in autumn before a long
winter closed every road between hill villages whose lights could be seen from far away at night""".split()
Prompt = list[int]
Answer = tuple[list[int], float]  # tokens, seconds to the first piece


def prompts(model: Model, count: int, words: int, seed: int) -> list[Prompt]:
    """Chats that ask for a story with some words; of texts alone where the bundle has no chat template."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        text = f"Write a short story with these words: {' '.join(rng.choices(WORDS, k=words))}."
        chat = model.bundle.chat is not None
        found.append(model.prompt([{"role": "user", "content": text}]) if chat else model.tokenize(text))
    return found


def answer(model: Model, prompt: Prompt, tokens: int) -> Answer:
    begun, first = time.perf_counter(), 0.0
    with model.stream(prompt, min_new_tokens=tokens, max_new_tokens=tokens) as stream:
        for _ in stream:
            first = first or time.perf_counter() - begun
    assert stream.result is not None
    return stream.result.tokens, first


def together(model: Model, given: list[Prompt], tokens: int) -> list[Answer]:
    """A thread for each, all at once."""
    found: dict[int, Answer] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: answer(model, given[i], tokens)})) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(given))]


def timed(work: Any) -> tuple[Any, float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - clock, time.process_time() - processor


def joining(model: Model, running: list[Prompt], late: Prompt, tokens: int) -> Answer:
    """The answer to a prompt that comes when all others have had some of theirs."""
    stop, begun = threading.Event(), [threading.Event() for _ in running]

    def run(i: int) -> None:
        try:
            with model.stream(running[i], max_new_tokens=1000) as stream:
                for _ in stream:
                    begun[i].set()
                    if stop.is_set():
                        return
        finally:
            begun[i].set()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(running))]
    for thread in threads:
        thread.start()
    for one in begun:
        one.wait()
    found = answer(model, late, tokens)
    stop.set()
    for thread in threads:
        thread.join()
    return found


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default=None)
@click.option("--streams", type=int, default=16, show_default=True)
@click.option("--tokens", type=int, default=32, show_default=True, help="New tokens of an answer.")
@click.option("--words", type=int, default=60, show_default=True, help="Of a prompt.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(bundle: Path, precision: str | None, streams: int, tokens: int, words: int, threads: int, rounds: int) -> None:
    ratios, processor, joined, bursts, same, total = [], [], [], [], 0, 0
    with load(bundle, precision=precision, threads=threads) as model:
        answer(model, prompts(model, 1, words, 0)[0], tokens)
        for seed in range(1, rounds + 1):
            given = prompts(model, streams + 1, words, seed)
            alone, clock, cpu = timed(lambda given=given: [answer(model, one, tokens) for one in given[:streams]])
            shared, clock_shared, cpu_shared = timed(lambda given=given: together(model, given[:streams], tokens))
            ratios.append(clock / clock_shared)
            processor.append(cpu / cpu_shared)
            last = answer(model, given[-1], tokens)
            late = joining(model, given[:streams], given[-1], tokens)
            joined.append(late[1] / last[1])
            bursts.append(sorted(one[1] / statistics.median(first for _, first in alone) for one in shared))
            same += sum(one[0] == other[0] for one, other in zip([*alone, last], [*shared, late], strict=True))
            total += streams + 1
            click.echo(
                f"round {seed}: alone {streams * tokens / clock:.1f} tokens/s, shared {streams * tokens / clock_shared:.1f}; "
                f"first token alone {last[1]:.3f} s, joining {late[1]:.3f} s"
            )
    middle, end = streams // 2, streams - 1
    click.echo(f"tokens/s of {streams} threads over one: {statistics.median(ratios):.2f}; by CPU time {statistics.median(processor):.2f}")
    click.echo(f"first token of one that joins {streams} running streams, over alone: {statistics.median(joined):.2f}")
    click.echo(
        f"burst of {streams}, first token over alone: first {statistics.median(b[0] for b in bursts):.2f}, "
        f"middle {statistics.median(b[middle] for b in bursts):.2f}, last {statistics.median(b[end] for b in bursts):.2f}"
    )
    click.echo(f"{same} of {total} answers are the same")


if __name__ == "__main__":
    main()
