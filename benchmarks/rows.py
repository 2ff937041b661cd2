"""Rows of a benchmark: rates of sides that ran in turn, what ours are compared with, and the floor.

A row: {"workload", "case", "threads", "unit", "sides": {name: {"rate", "ratios", ...}}}; `ratios` says of a peer how many times as fast
each of ours in a precision of its kind is, {precision: {"ratio", "low", "high"}} as compare.timing gives it; `floor` is in the row's unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sides
from bandwidth import read_speed, weight_bytes

from onnxport.compare.data import Dataset, read_data
from onnxport.compare.measure import idle
from onnxport.compare.measure.timing import Timed, alternate, ratio
from onnxport.compare.protocol.client import Client

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Loaded clients by side, and how they are to be run. cpu: seconds of a side's process are measured where a workload can."""

    clients: Mapping[str, Client]
    models: Path
    environments: Path
    threads: int
    rounds: int
    data: Path | None
    limit: int | None
    kind: str = "marian"
    cpu: bool = False

    def alternate(self, run: Callable[[Client, int], tuple[float, int]], rounds: int, warm_up: int = 1) -> dict[str, Timed]:
        return alternate(self.clients, run, rounds=rounds, least=rounds, budget_s=0, warm_up=warm_up, after=idle.wait)

    def texts(self) -> Dataset:
        """The sentences of --data; of pairs, a row a sentence with all its references."""
        if self.data is None:
            raise SystemExit("this workload needs --data: a .tsv of pairs for text and long, a .txt with a sentence a line for encoder")
        data = read_data(self.data)
        return data.grouped() if data.references else data

    def floor(self, precision: str, rows: int) -> dict[str, float]:
        """Weight bytes of a step of ours, the speed of reading as many bytes here and now, and the seconds that takes."""
        bundle, variant = sides.bundle_of(self.models, precision)
        size = weight_bytes(bundle / variant / "decoder.onnx", rows)
        speed = read_speed(size, self.threads)
        return {"step_bytes": size, "bytes_per_s": speed, "step_s": size / speed}


def make_row(bench: Bench, workload: str, case: str, unit: str, timed: dict[str, Timed]) -> Row:
    """Rates, and the ratios of ours to the others of like precision."""
    found: dict[str, dict[str, Any]] = {}
    for name, times in timed.items():
        found[name] = {"rate": times.rate, "seconds": times.seconds, "units": times.units}
        system, precision = name.split()
        rivals = [one for one in sides.RIVALS.get(precision, ()) if f"{sides.OURS} {one}" in timed and system != sides.OURS]
        if rivals:
            found[name]["ratios"] = {one: ratio(timed[f"{sides.OURS} {one}"], times) for one in rivals}
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


def best_batching(name: str, side: Client, method: str, inputs: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The fastest of the side's ways through a sample, one warm run and one that counts each."""
    seconds: list[float] = []
    ways = sides.BATCHING[name.split()[0]]
    for way in ways:
        seconds.append(side.time(method, inputs, calls=2, **options, **way)[-1][0])
    return ways[seconds.index(min(seconds))]
