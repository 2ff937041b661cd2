"""What is measured of translation models, and the table of all workloads: each runs its sides in turn and gives rows (rows.py)."""

import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import causal
import encoders
import sides
from handbuilt import SCHEMES
from rows import Bench, Row, add_floor, best_batching, make_row, ours

from onnxport.compare.data import Dataset
from onnxport.compare.measure import idle
from onnxport.compare.measure.timing import alternate, ratio
from onnxport.compare.metrics import agreement, translation
from onnxport.compare.protocol.client import Client

SOURCE_TOKENS, NEW_TOKENS, MOST_TOKENS = 25, 32, 128
FIXED = [(batch, 1) for batch in (1, 4, 16, 64)] + [(batch, 4) for batch in (1, 16)]  # batch, beams


def source_ids(batch: int, length: int = SOURCE_TOKENS) -> list[list[int]]:
    """Rows of ids that every model has, </s> last; the same ones each time."""
    chooser = random.Random(batch)
    return [[chooser.randrange(2, 7000) for _ in range(length - 1)] + [0] for _ in range(batch)]


def longer(data: Dataset, least_words: int = 32) -> Dataset:
    """Neighbouring sentences joined until a text has `least_words`, with their first references: 40 to 80 tokens of Tatoeba's."""
    texts, references, words, sentences = [], [], [], []
    for text, reference in zip(data.inputs, data.references or [], strict=True):
        words.append(text)
        sentences.append(reference[0])
        if sum(len(one.split()) for one in words) >= least_words:
            texts.append(" ".join(words))
            references.append([" ".join(sentences)])
            words, sentences = [], []
    return Dataset(f"{data.name}, joined", data.kind, texts, references, [0] * len(texts))


def check(bench: Bench) -> Iterator[Row]:
    """Not a speed: the share of answers that are transformers' own; for Marian greedy and beam answers to fixed ids."""
    if bench.kind != "marian":
        yield from (encoders.check if bench.kind == "bert" else causal.check)(bench)
        return
    reference = "transformers fp32"
    for beam in (1, 4):
        options = {"beam": beam, "min_new_tokens": 12, "max_new_tokens": 12}
        outputs = {name: side.call("generate", source_ids(4), **options)[0] for name, side in bench.clients.items()}
        if reference in outputs:
            found = {name: {"rate": agreement(answers, outputs[reference])["agreement"]} for name, answers in outputs.items()}
            case = f"4 sources, {'greedy' if beam == 1 else f'beam {beam}'}, 12 tokens"
            yield {"workload": "check", "case": case, "threads": bench.threads, "unit": "share equal", "sides": found}


def fixed(bench: Bench) -> Iterator[Row]:
    """Exactly 32 new tokens from 25 source ids, encoder included."""
    for batch, beam in FIXED:
        options = {"beam": beam, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
        ids = source_ids(batch)

        def run(side: Client, number: int, ids: Any = ids, options: Any = options) -> tuple[float, int]:
            return side.time("generate", ids, **options)[0]

        floors = {name: bench.floor(precision, batch * beam) for name, precision in ours(bench).items()}
        timed = bench.alternate(run, bench.rounds)
        case = f"batch {batch}, {'greedy' if beam == 1 else f'beam {beam}'}"
        yield add_floor(make_row(bench, "fixed", case, "tokens/s", timed), floors, batch)


def text(bench: Bench) -> Iterator[Row]:
    """All sentences of the test set in one call, each side with its own best batching."""
    yield from _corpus(bench, "text", bench.texts().limited(bench.limit))


def long(bench: Bench) -> Iterator[Row]:
    """The same for texts of several sentences."""
    yield from _corpus(bench, "long", longer(bench.texts()).limited(bench.limit))


def _corpus(bench: Bench, workload: str, data: Dataset) -> Iterator[Row]:
    for beam in (1, 4):
        options = {"beam": beam, "max_new_tokens": MOST_TOKENS}
        best = {name: best_batching(name, side, "generate", data.limited(128).inputs, options) for name, side in bench.clients.items()}
        outputs: dict[str, list[Any]] = {}

        def run(side: Client, number: int, options: Any = options, best: Any = best, outputs: Any = outputs) -> tuple[float, int]:
            outputs[side.name], seconds = side.call("generate", data.inputs, **options, **best[side.name])
            return seconds, len(data)

        floors = {name: bench.floor(precision, int(best[name]["batch_size"]) * beam) for name, precision in ours(bench).items()}
        timed = bench.alternate(run, max(1, bench.rounds // 3), warm_up=0)
        row = make_row(bench, workload, f"{len(data)} texts, {'greedy' if beam == 1 else f'beam {beam}'}", "texts/s", timed)
        for name, answers in outputs.items():
            tokens = sum(len(answer["tokens"]) for answer in answers)
            scores = translation([answer["text"] or "" for answer in answers], data.references or [])
            row["sides"][name] |= {"bleu": scores["bleu"], "tokens": tokens, "batching": best[name]}
        yield add_floor_of_texts(row, floors, len(data))


def add_floor_of_texts(row: Row, floors: dict[str, dict[str, float]], texts: int) -> Row:
    """The floor for texts: what a step can do is `batch_size` tokens, and a text has as many as the side gave it on average."""
    for name, floor in floors.items():
        side = row["sides"][name]
        steps = side["tokens"] / min(texts, int(side["batching"]["batch_size"]))
        add_floor(row, {name: floor}, texts / steps)
    return row


def start(bench: Bench) -> Iterator[Row]:
    """A fresh process to its first short answer, module imports apart; and the most memory it held."""
    loads: dict[str, list[float]] = {name: [] for name in bench.clients}
    peaks: dict[str, list[float]] = {name: [] for name in bench.clients}

    def run(side: Client, number: int) -> tuple[float, int]:
        with sides.start(side.name, bench.models, bench.environments, bench.threads) as fresh:
            load = fresh.load()["load_ms"] / 1e3
            first = fresh.time("generate", source_ids(1), max_new_tokens=8, min_new_tokens=8)[0][0]
            peaks[side.name].append(fresh.request("stats")["peak_rss_bytes"] / 1e6)
        loads[side.name].append(load)
        return load + first, 1

    row = make_row(bench, "start", "load to first output", "starts/s", bench.alternate(run, bench.rounds))
    for name, found in row["sides"].items():
        busy = bench.clients[name].request("stats")["peak_rss_bytes"] / 1e6
        found |= {"load_s": statistics.median(loads[name]), "first_s": statistics.median(found["seconds"])}
        found |= {"peak_mb_first": statistics.median(peaks[name]), "peak_mb_all": max(busy, *peaks[name])}
    yield row


def ceiling(bench: Bench) -> Iterator[Row]:
    """Ours without its encoder (33 new tokens less 1 new token, in the same round) against the step built by hand, 32 steps."""
    built = {f"handbuilt {scheme}": sides.ceiling(scheme, bench.threads) for scheme in SCHEMES}
    clients = {name: bench.clients[name] for name in ours(bench)} | built
    try:
        for side in built.values():
            side.load()
        for batch in (1, 4, 16, 64):
            ids = source_ids(batch)

            def run(side: Client, number: int, ids: Any = ids) -> tuple[float, int]:
                if side.name in built:
                    return side.time("generate", ids, max_new_tokens=NEW_TOKENS)[0]
                many, one = (side.time("generate", ids, min_new_tokens=n, max_new_tokens=n)[0] for n in (NEW_TOKENS + 1, 1))
                return many[0] - one[0], many[1] - one[1]

            timed = alternate(clients, run, rounds=bench.rounds, least=bench.rounds, budget_s=0, after=idle.wait)
            row = make_row(bench, "ceiling", f"batch {batch}, greedy", "tokens/s", timed)
            for name, precision in ours(bench).items():
                like = [built_by for built_by in built if (built_by.split()[1] == "fp32") == (precision == "fp32")]
                highest = max(like, key=lambda one: timed[one].rate)
                row["sides"][name] |= {"ceiling": highest, "share_of_ceiling": ratio(timed[name], timed[highest])}
            yield row
    finally:
        for side in built.values():
            side.close()


WORKLOADS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "check": check,
    "fixed": fixed,
    "text": text,
    "long": long,
    "ceiling": ceiling,
    "start": start,
    "llama": causal.llama,
    "prefill": causal.prefill,
    "encoder": encoders.encoder,
}
DEFAULT = {"marian": ("check", "fixed"), "llama": ("check", "llama"), "gpt2": ("check", "llama"), "bert": ("check", "encoder")}
