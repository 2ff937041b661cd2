"""Measures sides that are given: starts, answers, speed, latency, memory, parity. Knows nothing of bundles; peers come the same way."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from onnxport.compare import metrics, scores
from onnxport.compare.measure import energy, timing
from onnxport.compare.protocol.client import Client
from onnxport.compare.workload import Asked, Workload
from onnxport.errors import TextError
from onnxport.progress import Progress

LAUNCHES = 3
_BESIDE = {"likelihoods": "scoring the tokens", "encode": "encoding the passages"}
_SLOW_START_MS = 4000.0
_ROUNDS = 15
_LATENCY_ROUNDS = 100
_BUDGET_S = 6.0  # for each batch size and for the latencies, all sides together; at least 5 rounds are always run


@contextmanager
def started(specs: Mapping[str, dict[str, Any]], work: Workload, *, launches: int, paths: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields {name: {"client", "import_ms", "load_ms", "first_output_ms", "about"}}; all processes are ended on the way out.

    Every side is started `launches` times, in turn, and the medians are kept: the first start of all reads files into the page cache.
    A side that needs more than _SLOW_START_MS is started once only.
    first_output_ms runs from the start of the process, imports included, to its first answer.
    """
    paths = list(paths)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in specs}
    found: dict[str, Any] = {}
    first = work.asked.chunks()[0]
    with ExitStack() as stack:
        for number in range(launches):
            for name, spec in specs.items():
                if number and taken[name][0]["first_output_ms"] > _SLOW_START_MS:
                    continue
                client = stack.enter_context(Client(name, spec, paths=paths))
                loaded = client.load()
                _ask(client, work.asked, 0, first)
                waited = (time.perf_counter() - client.started) * 1e3
                taken[name].append({"import_ms": loaded["import_ms"], "load_ms": loaded["load_ms"], "first_output_ms": waited})
                found[name] = {"client": client, "about": loaded["about"]}
                if number < launches - 1 and waited <= _SLOW_START_MS:
                    client.close()
        for name, launch in taken.items():
            found[name] |= {key: statistics.median(one[key] for one in launch) for key in launch[0]}
        yield found


def answers(sides: Mapping[str, Client], work: Workload, batch: int) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Every side's outputs for all inputs, and its rate on them (new tokens or items a second); sides alternate batch by batch."""
    outputs, seconds = asked(sides, replace(work.asked, size=batch))
    units = {name: sum(len(o["tokens"]) for o in given) if work.generates else len(given) for name, given in outputs.items()}
    return outputs, {name: units[name] / seconds[name] for name in sides}


def asked(sides: Mapping[str, Client], wanted: Asked) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Every side's outputs and the seconds they took; sides alternate call by call."""
    names = list(sides)
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for number, chunk in enumerate(wanted.chunks()):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            given, spent = _ask(sides[name], wanted, number * wanted.size, chunk)
            outputs[name] += [given] if wanted.method == "run" else list(given)
            seconds[name] += spent
    return outputs, seconds


def _ask(client: Client, wanted: Asked, start: int, chunk: Any) -> tuple[Any, float]:
    """Outputs of a chunk and the seconds it took. A text that the side refuses is told by its line in the data file.

    start: place of the chunk's first input among all.
    """
    try:
        return client.call(wanted.method, chunk, **wanted.options)
    except TextError as error:
        if wanted.lines is None:
            raise
        if len(chunk) == 1:
            line = f"line {wanted.lines[start]}" if wanted.lines[start] else f"row {start + 1}"
            raise TextError(f"{wanted.name}: {line}: {error}") from error
        for offset, one in enumerate(chunk):
            _ask(client, wanted, start + offset, [one])
        raise


def statistics_of(work: Workload, outputs: Sequence[Any], beside: Sequence[Any], reference: Sequence[Any]) -> scores.Statistics:
    """What one side's outputs tell of its quality, by metric."""
    if work.beside is not None and work.owners is None:
        return scores.of_likelihoods(beside)
    if work.method == "encode":
        found = {} if work.owners is None else scores.of_retrieval(outputs, beside, work.owners)
        return found | scores.of_vectors(outputs, reference)
    return metrics.task_statistics(work.kind, outputs, work.references)


def throughput(
    sides: Mapping[str, Client], work: Workload, batch: int, *, rounds: int, budget_s: float, meters: Mapping[str, energy.Meter]
) -> dict[str, timing.Timed]:
    """Runs on batches of one size; with generation every row makes the same number of new tokens. meters: by side, where there are any."""
    run = timing.timed_call(work.method, work.batches(batch, rounds), **work.fixed)
    return timing.alternate(sides, run, rounds=rounds, budget_s=budget_s, meters=meters)


def latency(sides: Mapping[str, Client], work: Workload, *, rounds: int, budget_s: float) -> dict[str, timing.Timed]:
    """Single inputs answered as a user gets them, each to its natural end."""
    batches = work.batches(1, rounds)
    run = timing.timed_call(work.method, batches, **work.natural)
    return timing.alternate(sides, run, rounds=max(len(batches), 20), least=min(20, rounds), fewest=min(10, rounds), budget_s=budget_s)


def memory_and_parity(sides: Mapping[str, Client]) -> dict[str, dict[str, Any]]:
    """peak_rss_bytes of every side, taken before the golden answers are replayed, and what the replay found (None if not offered)."""
    return {name: client.request("stats") | {"parity": client.request("parity")} for name, client in sides.items()}


def measured(
    specs: Mapping[str, dict[str, Any]],
    work: Workload,
    batches: Sequence[int],
    reference: str,
    sizes: Mapping[str, int],
    tell: Progress,
    paths: Iterable[str] = (),
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Any]], dict[str, str]]:
    """Metrics by side (the fields of report.json), outputs by side, and versions that the sides told.

    specs: see `worker`.  batches: sizes to time.  reference: the side that the others are held against.
    sizes: bytes on disk of sides that do not tell theirs.  paths: folders that sides are imported from.  tell: told the name of each stage.
    """
    tell(f"starting {', '.join(specs)}")
    with started(specs, work, launches=LAUNCHES, paths=paths) as found:
        sides = {name: side["client"] for name, side in found.items()}
        tell(f"answering {len(work.inputs)} inputs")
        outputs, data_rates = answers(sides, work, max(batches))
        beside: dict[str, list[Any]] = {name: [] for name in sides}
        if work.beside is not None:
            tell(f"{_BESIDE[work.beside.method]} of {len(work.beside.inputs)} texts")
            beside, _ = asked(sides, work.beside)
        meters = {name: energy.meter(side["about"].get("device", "cpu")) for name, side in found.items()}
        timed = {}
        for batch in batches:
            tell(f"timing batches of {batch}")
            working = {name: meter for name, meter in meters.items() if isinstance(meter, energy.Meter)}
            timed[batch] = throughput(sides, work, batch, rounds=_ROUNDS, budget_s=_BUDGET_S, meters=working)
        tell("timing single inputs")
        singles = latency(sides, work, rounds=_LATENCY_ROUNDS, budget_s=_BUDGET_S)
        tell("reading memory, replaying the golden answers")
        last = memory_and_parity(sides)
    tell("scoring")
    found_of = {name: statistics_of(work, outputs[name], beside[name], outputs[reference]) for name in found}
    variants: dict[str, dict[str, Any]] = {}
    for name, side in found.items():
        size, base = (side["about"].get("size_bytes", sizes.get(n)) for n, side in ((name, side), (reference, found[reference])))
        first = timing.ratio(timed[batches[0]][name], timed[batches[0]][reference])
        parity = last[name]["parity"] or {}
        variants[name] = {
            "device": side["about"].get("device", "cpu"),
            "size_bytes": size,
            "size_ratio": size / base if size and base else None,
            **{key: side[key] for key in ("import_ms", "load_ms", "first_output_ms")},
            "latency_ms": timing.latency_ms(singles[name]),
            "latency_samples": len(singles[name].seconds),
            "throughput": timed[batches[0]][name].rate,
            "speedup": first["ratio"],
            "speedup_spread": {"low": first["low"], "high": first["high"]},
            "throughput_by_batch": {str(batch): runs[name].rate for batch, runs in timed.items()},
            "speedup_by_batch": {str(batch): timing.ratio(runs[name], runs[reference])["ratio"] for batch, runs in timed.items()},
            "data_throughput": data_rates[name],
            "energy": energy.described(meters[name], timed[batches[0]][name].joules_per_unit),
            "peak_rss_bytes": last[name]["peak_rss_bytes"],
            "max_abs_diff": parity.get("max_abs_diff"),
            "parity": parity or None,
            "agreement": None,  # of arrays: two float computations are not identical, `parity` tells how near they are
            **({} if work.method == "run" else metrics.agreement(outputs[name], outputs[reference])),
            **metrics.values(found_of[name]),
        }
    for name, values in variants.items():
        values |= metrics.drops(values, variants[reference])
        if name != reference:
            values |= metrics.drop_intervals(found_of[name], found_of[reference])
    versions = {package: version for side in found.values() for package, version in side["about"].get("versions", {}).items()}
    return variants, outputs, versions
