"""Guesses against plain decoding, both sides in one run: a draft on chats, lookup on copying tasks and on chats.

python benchmarks/speculation.py BUNDLE --precision fp32 --draft int8

For each way the ratio of seconds (median over rounds that alternate, and over texts), how many tokens a pass gave, and how many answers
are the same. Beside other work take `--threads 1 --cpu`: seconds of the processor, which others disturb less. Where answers part: the
place, and how far the logits of the two tokens lay apart, as a share of the spread of all logits there.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from copying_tasks import CHATS, COPYING

from onnxport.runtime import Generation, Model, load
from onnxport.runtime.decode.state import DecoderState

LOOP, TIMES = 8, 3  # an answer that has the same 8 tokens three times loops, and is not counted


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--draft", default="int8", show_default=True, help="The variant that guesses; '' for none.")
@click.option("--lookup", default=10, show_default=True, help="Most guesses from the text.")
@click.option("--tokens", default=128, show_default=True, help="Of the longest answers.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--limit", default=30, show_default=True, help="Texts of a kind.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--cpu", is_flag=True, help="Seconds of the processor, for one thread beside other work.")
@click.option("--only", default="", help="The one kind to measure: its first letters.")
def main(
    bundle: Path, precision: str, draft: str, lookup: int, tokens: int, rounds: int, limit: int, threads: int, cpu: bool, only: str
) -> None:
    clock = time.process_time if cpu else time.perf_counter
    with load(bundle, precision=precision, threads=threads, draft=draft or None) as model:
        kinds: list[tuple[str, list[str], dict[str, Any]]] = [
            ("copying, lookup", COPYING[:limit], {"lookup": lookup}),
            ("chats, lookup", CHATS[:limit], {"lookup": lookup}),
        ]
        if draft:
            kinds.insert(0, (f"chats, {draft} drafts", CHATS[:limit], {}))
        for name, texts, guesses in kinds:
            if name.startswith(only):
                measure(model, name, texts, guesses, tokens, rounds, clock)


def measure(
    model: Model, name: str, texts: list[str], guesses: dict[str, Any], tokens: int, rounds: int, clock: Callable[[], float]
) -> None:
    prompts = [model.prompt([{"role": "user", "content": text}]) for text in texts]
    options: dict[str, Any] = {"beam": 1, "temperature": 0, "max_new_tokens": tokens}
    ways = {"plain": options | {"draft": False}, "guessed": options | guesses}
    for way in ways.values():
        answer(model, prompts[0], way, clock)  # warm
    counted, ratios, sums, passes, same, partings = 0, [], {"plain": [0.0] * rounds, "guessed": [0.0] * rounds}, [0, 0], 0, []
    for prompt in prompts:
        found: dict[str, Generation] = {}
        seconds: dict[str, list[float]] = {"plain": [], "guessed": []}
        for round_ in range(rounds):
            for way in sorted(ways, reverse=bool(round_ % 2)):
                spent, found[way] = answer(model, prompt, ways[way], clock)
                seconds[way].append(spent)
        one, other = found["plain"], found["guessed"]
        if loops(one.tokens):
            continue
        counted += 1
        ratios.append(statistics.median(seconds["plain"]) / statistics.median(seconds["guessed"]))
        for way, values in seconds.items():
            sums[way] = [total + value for total, value in zip(sums[way], values, strict=True)]
        passes = [passes[0] + len(other.tokens), passes[1] + len(other.tokens) - other.accepted]
        same += one.tokens == other.tokens
        if one.tokens != other.tokens:
            partings.append(parting(model, prompt, one.tokens, other.tokens))
    if not counted:
        click.echo(f"{name}: every answer loops")
        return
    click.echo(f"    {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
    whole = statistics.median(a / b for a, b in zip(sums["plain"], sums["guessed"], strict=True))
    low, high = np.percentile(ratios, [10, 90])
    click.echo(
        f"{name}: {whole:.2f} times plain decoding (a text {statistics.median(ratios):.2f}, {low:.2f} to {high:.2f}), "
        f"{passes[0] / passes[1]:.2f} tokens a pass, {same} of {counted} answers are the same; {len(prompts) - counted} loop"
    )
    for place, gap in partings:
        click.echo(f"    parts at token {place}: logits {gap:.1e} of their spread apart")


def answer(model: Model, prompt: list[int], options: dict[str, Any], clock: Callable[[], float]) -> tuple[float, Generation]:
    begun = clock()
    (found,) = model.generate([prompt], **options)
    return clock() - begun, found


def loops(tokens: list[int]) -> bool:
    parts = [tuple(tokens[i : i + LOOP]) for i in range(len(tokens) - LOOP + 1)]
    return any(parts.count(part) >= TIMES for part in set(parts))


def parting(model: Model, prompt: list[int], one: list[int], other: list[int]) -> tuple[int, float]:
    """Where two answers part, and how far apart the logits of their tokens are there, of the spread of all."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if place == min(len(one), len(other)):  # one ends where the other goes on
        return place, float("nan")
    state = DecoderState(model.engine, None, [[*prompt, *one[:place]]], 1)  # type: ignore[arg-type]
    state.advance()
    logits = state.logits.numpy()[0]
    return place, float(abs(logits[one[place]] - logits[other[place]]) / (logits.max() - logits.min()))


if __name__ == "__main__":
    main()
