"""What is measured: each workload runs its sides in turn, round by round, and gives rows for the table.

A row: {"workload", "case", "threads", "unit", "sides": {name: {"rate", "ratio", ...}}}; `ratio` is how many times as fast ours of the same
precision is as the side, {"ratio", "low", "high"} as compare.timing gives it; `floor` is in the row's unit.
"""

import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sides
from bandwidth import read_speed, weight_bytes
from handbuilt import SCHEMES

from onnxport.compare.client import Client
from onnxport.compare.data import Dataset, read_data
from onnxport.compare.metrics import agreement, translation
from onnxport.compare.timing import Timed, alternate, ratio

Row = dict[str, Any]
SOURCE_TOKENS, NEW_TOKENS, MOST_TOKENS = 25, 32, 128
FIXED = [(batch, 1) for batch in (1, 4, 16, 64)] + [(batch, 4) for batch in (1, 16)]  # batch, beams


@dataclass(frozen=True)
class Bench:
    """Loaded clients by side, and how they are to be run."""

    clients: Mapping[str, Client]
    models: Path
    environments: Path
    threads: int
    rounds: int
    data: Path | None
    limit: int | None

    def alternate(self, run: Callable[[Client, int], tuple[float, int]], rounds: int, warm_up: int = 1) -> dict[str, Timed]:
        return alternate(self.clients, run, rounds=rounds, least=rounds, budget_s=0, warm_up=warm_up)

    def texts(self) -> Dataset:
        """The test set, a row a sentence with all its references."""
        if self.data is None:
            raise SystemExit("workloads text and long need --data, a .tsv of pairs")
        return read_data(self.data).grouped()

    def floor(self, precision: str, rows: int) -> dict[str, float]:
        """Weight bytes of a step of ours, the speed of reading as many bytes here and now, and the seconds that takes."""
        size = weight_bytes(self.models / sides.OURS / precision / "decoder.onnx", rows)
        speed = read_speed(size, self.threads)
        return {"step_bytes": size, "bytes_per_s": speed, "step_s": size / speed}


def source_ids(batch: int, length: int = SOURCE_TOKENS) -> list[list[int]]:
    """Rows of ids that every model has, </s> last; the same ones each time."""
    chooser = random.Random(batch)
    return [[chooser.randrange(2, 7000) for _ in range(length - 1)] + [0] for _ in range(batch)]


def longer(data: Dataset, least_words: int = 32) -> Dataset:
    """Neighbouring sentences joined until a text has `least_words`, with their first references: 40 to 80 tokens of Tatoeba's."""
    texts, references, words, said = [], [], [], []
    for text, reference in zip(data.inputs, data.references or [], strict=True):
        words.append(text)
        said.append(reference[0])
        if sum(len(one.split()) for one in words) >= least_words:
            texts.append(" ".join(words))
            references.append([" ".join(said)])
            words, said = [], []
    return Dataset(f"{data.name}, joined", data.kind, texts, references, [0] * len(texts))


def make_row(bench: Bench, workload: str, case: str, unit: str, timed: dict[str, Timed]) -> Row:
    """Rates, and the ratios of ours to the others of its precision."""
    found: dict[str, dict[str, Any]] = {}
    for name, times in timed.items():
        found[name] = {"rate": times.rate, "seconds": times.seconds, "units": times.units}
        ours = f"{sides.OURS} {name.split()[-1]}"
        if ours in timed and ours != name:
            found[name]["ratio"] = ratio(timed[ours], times)
    return {"workload": workload, "case": case, "threads": bench.threads, "unit": unit, "sides": found}


def add_floor(row: Row, floors: dict[str, dict[str, float]], units_per_step: float) -> Row:
    """The rate at which steps would go if reading the weights were all, and the share of it that ours reach; encoders are not counted."""
    for name, floor in floors.items():
        rate = units_per_step / floor["step_s"]
        row["sides"][name] |= {"floor": rate, "share_of_floor": row["sides"][name]["rate"] / rate, **floor}
    return row


def ours(bench: Bench) -> dict[str, str]:
    """Our sides -> their precision."""
    return {name: name.split()[1] for name in bench.clients if name.startswith(sides.OURS)}


def check(bench: Bench) -> Iterator[Row]:
    """Not a speed: the share of greedy and beam answers that are transformers' own, on fixed ids."""
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
        best = {name: best_batching(name, side, data.limited(128).inputs, options) for name, side in bench.clients.items()}
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


def best_batching(name: str, side: Client, inputs: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The fastest of the side's ways through a sample, one warm run and one that counts each."""
    seconds: list[float] = []
    ways = sides.BATCHING[name.split()[0]]
    for way in ways:
        seconds.append(side.time("generate", inputs, calls=2, **options, **way)[-1][0])
    return ways[seconds.index(min(seconds))]


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

            timed = alternate(clients, run, rounds=bench.rounds, least=bench.rounds, budget_s=0)
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
}
