"""Language models: exactly 128 new tokens, greedily, from 25 ids of a prompt, for one row and for eight; and prompts of four lengths."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Bench, Row, add_floor, make_row, ours

from onnxport.compare.protocol.client import Client

PROMPT_TOKENS, NEW_TOKENS = 25, 128
BATCHES = (1, 8)
PREFILLS = (128, 512, 2048, 8191)  # ids of a prompt; the last leaves room for one token in 8,192 positions
LEAST_SECONDS = 0.5  # of a measurement: short prompts are read several times
REFERENCE = "transformers fp32"


def prompts(batch: int, length: int = PROMPT_TOKENS) -> list[list[int]]:
    """Rows of ids that every model has, none of them special; the same ones each time."""
    chooser = random.Random(batch)
    return [[chooser.randrange(300, 20_000) for _ in range(length)] for _ in range(batch)]


def check(bench: Bench) -> Iterator[Row]:
    """Not a speed: the share of rows that are transformers' own to the last of 128 tokens, and how many tokens are until they part."""
    options = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    for batch in BATCHES:
        outputs = {name: side.call("generate", prompts(batch), beam=1, **options)[0] for name, side in bench.clients.items()}
        for name, answers in outputs.items():
            lengths = {len(answer["tokens"]) for answer in answers}
            if lengths != {NEW_TOKENS}:
                raise SystemExit(f"{name}: answers of {sorted(lengths)} tokens, expected exactly {NEW_TOKENS}")
        if REFERENCE not in outputs:
            raise SystemExit(f"check compares with {REFERENCE}: name it with --side too")
        found = {name: _likeness(answers, outputs[REFERENCE]) for name, answers in outputs.items()}
        case = f"batch {batch}, greedy, {NEW_TOKENS} tokens"
        yield {"workload": "check", "case": case, "threads": bench.threads, "unit": "share of rows equal", "sides": found}


def _likeness(answers: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    same = []
    for answer, wanted in zip(answers, reference, strict=True):
        pairs = zip(answer["tokens"], wanted["tokens"], strict=True)
        same.append(next((i for i, (one, other) in enumerate(pairs) if one != other), len(wanted["tokens"])))
    return {"rate": sum(length == NEW_TOKENS for length in same) / len(same), "equal_tokens": same}


def llama(bench: Bench) -> Iterator[Row]:
    """128 new tokens from 25; the prompt's pass is included."""
    options = {"beam": 1, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    for batch in BATCHES:
        ids = prompts(batch)

        def run(side: Client, number: int, ids: Any = ids) -> tuple[float, int]:
            seconds, tokens = side.time("generate", ids, **options)[0]
            if tokens != len(ids) * NEW_TOKENS:
                raise SystemExit(f"{side.name}: {tokens} new tokens, expected {len(ids) * NEW_TOKENS}")
            return seconds, tokens

        floors = {name: bench.floor(precision, batch) for name, precision in ours(bench).items()}
        timed = bench.alternate(run, bench.rounds)
        yield add_floor(make_row(bench, "llama", f"batch {batch}, greedy", "tokens/s", timed), floors, batch)


def processor_seconds(side: Client) -> float:
    """What a side's process has taken of the processor, in hundredths; on Linux."""
    fields = Path(f"/proc/{side.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prefill(bench: Bench) -> Iterator[Row]:
    """A prompt to its first token, one row, and which sides choose the same one as the first."""
    options = {"beam": 1, "min_new_tokens": 1, "max_new_tokens": 1}
    for length in PREFILLS:
        ids = prompts(1, length)
        first, seconds = {}, []
        for name, side in bench.clients.items():
            answers, spent = side.call("generate", ids, **options)
            first[name] = answers[0]["tokens"]
            seconds.append(spent)
        calls = max(1, round(LEAST_SECONDS / min(seconds)))

        def run(side: Client, number: int, ids: Any = ids, calls: int = calls) -> tuple[float, int]:
            before = processor_seconds(side) if bench.cpu else 0.0
            clock = sum(spent for spent, _ in side.time("generate", ids, calls=calls, **options))
            return processor_seconds(side) - before if bench.cpu else clock, calls * len(ids[0])

        unit = "ids/s of the processor" if bench.cpu else "ids/s"
        row = make_row(bench, "prefill", f"{length} ids", unit, bench.alternate(run, bench.rounds, warm_up=0))
        reference = first[next(iter(bench.clients))]
        for name, found in row["sides"].items():
            found["same_token"] = first[name] == reference
        yield row
