"""Measurements of sides: start, answers, speed, latency, memory and parity.

Nothing here knows of bundles: peers are measured in the same way.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxport.compare import metrics, scores, speed
from onnxport.compare.measure import energy, idle, timing
from onnxport.compare.protocol.client import Client
from onnxport.compare.workload import SideRequest, Workload
from onnxport.errors import TextError
from onnxport.progress import Progress, counted, silent

LAUNCHES = 3
_EXTRA_STAGES = {"likelihoods": "scoring the tokens", "encode": "encoding the passages"}
_SLOW_START_MS = 4000.0
_DECIDING = {"rounds": 400, "least": 25, "fewest": speed.LEAST_ROUNDS, "budget_s": 45.0}  # of the first batch size, which verdicts rest on
_ROUNDS = 15
_LATENCY_ROUNDS = 100
_BUDGET_S = 6.0  # for each further batch size and for the latencies, all sides together; at least 5 rounds are always run


@dataclass(frozen=True)
class Measured:
    """variants: the metrics of each side, the fields of report.json.  outputs: the answers of each side.  versions: of packages, as the
    sides report them."""

    variants: dict[str, dict[str, Any]]
    outputs: dict[str, list[Any]]
    versions: dict[str, str]


@dataclass(frozen=True)
class StartedSide:
    """A side that has answered once, and how long that took; times are medians over the launches.

    first_output_ms: from the start of the process, imports included, to the first answer.  about: see `messages.Side`.
    """

    client: Client
    about: dict[str, Any]
    import_ms: float
    load_ms: float
    first_output_ms: float


@dataclass(frozen=True)
class _Runs:
    """Everything that was taken from the sides while they ran, by side; `timed` by batch size first. ratios: of the first batch size."""

    outputs: dict[str, list[Any]]
    extra_outputs: dict[str, list[Any]]
    data_rates: dict[str, float]
    meters: dict[str, energy.Meter | str]
    timed: dict[int, dict[str, timing.Timed]]
    ratios: dict[str, dict[str, speed.Ratio]]
    singles: dict[str, timing.Timed]
    memory: dict[str, dict[str, Any]]


def measured(
    specs: Mapping[str, dict[str, Any]],
    work: Workload,
    batches: Sequence[int],
    reference: str,
    sizes: Mapping[str, int],
    progress: Progress,
    paths: Iterable[str] = (),
) -> Measured:
    """Starts all sides, gives them the work and measures what they do.

    specs: by side, see `worker`.  batches: sizes to time.  reference: the side that the others are held against.
    sizes: bytes on disk of sides that do not report theirs.  paths: folders that sides are imported from.
    """
    progress(f"starting {', '.join(specs)}")
    with started(specs, work, launches=LAUNCHES, paths=paths) as sides:
        runs = _run(sides, work, batches, progress)
    progress("scoring")
    outputs = runs.outputs
    by_side = {name: statistics_of(work, outputs[name], runs.extra_outputs[name], outputs[reference]) for name in sides}
    variants: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        size, base = (sides[one].about.get("size_bytes", sizes.get(one)) for one in (name, reference))
        variants[name] = {
            "device": side.about.get("device", "cpu"),
            "size_bytes": size,
            "size_ratio": size / base if size and base else None,
            "import_ms": side.import_ms,
            "load_ms": side.load_ms,
            "first_output_ms": side.first_output_ms,
            **_speed(runs, name, reference, batches),
            **_memory_and_parity(runs.memory[name]),
            "agreement": None,  # of arrays: two float computations are not identical, `parity` says how near they are
            **({} if work.method == "run" else metrics.agreement(outputs[name], outputs[reference])),
            **metrics.values(by_side[name]),
            **metrics.guesses(outputs[name]),
        }
    for name, values in variants.items():
        values |= metrics.drops(values, variants[reference])
        if name != reference:
            values |= metrics.drop_intervals(by_side[name], by_side[reference])
    versions = {package: version for side in sides.values() for package, version in side.about.get("versions", {}).items()}
    return Measured(variants, outputs, versions)


def _run(sides: Mapping[str, StartedSide], work: Workload, batches: Sequence[int], progress: Progress) -> _Runs:
    clients = {name: side.client for name, side in sides.items()}
    outputs, data_rates = answers(clients, work, max(batches), progress)
    extra_outputs: dict[str, list[Any]] = {name: [] for name in clients}
    if work.extra_request is not None:
        extra_outputs, _ = request_outputs(clients, work.extra_request, progress, _EXTRA_STAGES[work.extra_request.method])
    meters = {name: energy.meter(side.about.get("device", "cpu")) for name, side in sides.items()}
    working = {name: meter for name, meter in meters.items() if isinstance(meter, energy.Meter)}
    timed: dict[int, dict[str, timing.Timed]] = {}
    for batch in batches:
        limits: dict[str, Any] = {"rounds": _ROUNDS, "budget_s": _BUDGET_S} if timed else {**_DECIDING, "enough": _settled}
        told = counted(progress, f"timing rounds of batches of {batch}")
        timed[batch] = throughput(clients, work, batch, meters=working, on_round=told, **limits)
    singles = latency(
        clients, work, rounds=_LATENCY_ROUNDS, budget_s=_BUDGET_S, on_round=counted(progress, "timing rounds of single inputs")
    )
    progress("reading memory, replaying the golden answers")
    # The replay takes memory of its own, so the peak is read before it.
    memory = {name: client.request("stats") | {"parity": client.request("parity")} for name, client in clients.items()}
    ratios = speed.all_paired({name: one.rates for name, one in timed[batches[0]].items()})
    return _Runs(outputs, extra_outputs, data_rates, meters, timed, ratios, singles, memory)


def _settled(timed: Mapping[str, timing.Timed]) -> bool:
    """Whether it is clear of every two sides which is the faster, or that neither is."""
    ratios = speed.all_paired({name: one.rates for name, one in timed.items()})
    return all(ratio.settled for others in ratios.values() for ratio in others.values())


def _speed(runs: _Runs, name: str, reference: str, batches: Sequence[int]) -> dict[str, Any]:
    """The fields of a variant for time and energy."""
    single, first = runs.singles[name], runs.timed[batches[0]]
    spread = timing.ratio(first[name], first[reference])
    own = speed.EQUAL if name == reference else runs.ratios[name][reference]
    return {
        "latency_ms": timing.latency_ms(single),
        "latency_samples": len(single.seconds),
        "throughput": first[name].rate,
        "speedup": own.ratio,
        "speedup_ci": {"low": own.low, "high": own.high} if own.low is not None else None,
        "speedup_spread": {"low": spread["low"], "high": spread["high"]},
        "speed_against": {other: asdict(ratio) for other, ratio in runs.ratios[name].items()},
        "throughput_by_batch": {str(batch): timed[name].rate for batch, timed in runs.timed.items()},
        "speedup_by_batch": {str(batch): timing.ratio(timed[name], timed[reference])["ratio"] for batch, timed in runs.timed.items()},
        "data_throughput": runs.data_rates[name],
        "energy": energy.described(runs.meters[name], first[name].joules_per_unit),
    }


def _memory_and_parity(stats: Mapping[str, Any]) -> dict[str, Any]:
    parity = stats["parity"] or {}  # None of a side that does not replay golden answers
    return {
        "peak_rss_bytes": stats["peak_rss_bytes"],
        "cpu_share": stats.get("cpu_share"),
        "max_abs_diff": parity.get("max_abs_diff"),
        "parity": parity or None,
    }


@contextmanager
def started(
    specs: Mapping[str, dict[str, Any]], work: Workload, *, launches: int, paths: Iterable[str] = ()
) -> Iterator[dict[str, StartedSide]]:
    """Starts every side and has it answer its first input; all processes are ended on the way out.

    Every side is started `launches` times, in turn, and the medians are kept: the first start of all reads files into the page cache.
    A side that needs more than _SLOW_START_MS is started once only.
    """
    paths = list(paths)
    launched: dict[str, list[StartedSide]] = {name: [] for name in specs}
    first = work.request.chunks()[0]
    with ExitStack() as stack:
        for number in range(launches):
            for name, spec in specs.items():
                if number and launched[name][0].first_output_ms > _SLOW_START_MS:
                    continue
                client = stack.enter_context(Client(name, spec, paths=paths))
                loaded = client.load()
                _call(client, work.request, 0, first)
                waited = (time.perf_counter() - client.started) * 1e3
                launched[name].append(StartedSide(client, loaded["about"], loaded["import_ms"], loaded["load_ms"], waited))
                if number < launches - 1 and waited <= _SLOW_START_MS:
                    client.close()
        yield {name: _median_start(sides) for name, sides in launched.items()}


def _median_start(launched: Sequence[StartedSide]) -> StartedSide:
    """The last of a side's launches, which still runs, with the medians of all."""
    import_ms, load_ms, first_output_ms = (
        statistics.median(times) for times in zip(*((one.import_ms, one.load_ms, one.first_output_ms) for one in launched), strict=True)
    )
    return replace(launched[-1], import_ms=import_ms, load_ms=load_ms, first_output_ms=first_output_ms)


def answers(
    sides: Mapping[str, Client], work: Workload, batch: int, progress: Progress = silent
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Every side's outputs for all inputs, and its rate on them (new tokens or items a second); sides alternate batch by batch."""
    outputs, seconds = request_outputs(sides, replace(work.request, size=batch), progress, "answering inputs")
    units = {name: sum(len(one["tokens"]) for one in answered) if work.generates else len(answered) for name, answered in outputs.items()}
    return outputs, {name: units[name] / seconds[name] for name in sides}


def request_outputs(
    sides: Mapping[str, Client], request: SideRequest, progress: Progress = silent, stage: str = ""
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Every side's outputs and the seconds they took; sides alternate call by call. stage: what progress calls it."""
    told = counted(progress, stage)
    names = list(sides)
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for number, chunk in enumerate(request.chunks()):
        told(number * request.size, len(request.inputs))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            output, spent = _call(sides[name], request, number * request.size, chunk)
            outputs[name] += [output] if request.method == "run" else list(output)
            seconds[name] += spent
    return outputs, seconds


def _call(client: Client, request: SideRequest, start: int, chunk: Any) -> tuple[Any, float]:
    """Outputs of a chunk and the seconds it took. The TextError of a text that the side refuses names its line in the data file.

    start: place of the chunk's first input among all.
    """
    try:
        return client.call(request.method, chunk, **request.options)
    except TextError as error:
        if request.lines is None:
            raise
        if len(chunk) == 1:
            line = f"line {request.lines[start]}" if request.lines[start] else f"row {start + 1}"
            raise TextError(f"{request.name}: {line}: {error}") from error
        for offset, one in enumerate(chunk):
            _call(client, request, start + offset, [one])
        raise


def statistics_of(work: Workload, outputs: Sequence[Any], extra_outputs: Sequence[Any], reference: Sequence[Any]) -> scores.Statistics:
    """The statistics of one side's quality, by metric. extra_outputs: of the workload's extra request.  reference: that side's outputs."""
    if work.scored is not None:
        return scores.of_likelihoods(extra_outputs)
    if work.method == "encode":
        recalls = {} if work.passage_of is None else scores.of_retrieval(outputs, extra_outputs, work.passage_of)
        return recalls | scores.of_vectors(outputs, reference)
    return metrics.task_statistics(work.kind, outputs, work.references)


def throughput(
    sides: Mapping[str, Client],
    work: Workload,
    batch: int,
    *,
    rounds: int,
    budget_s: float,
    meters: Mapping[str, energy.Meter],
    **options: Any,
) -> dict[str, timing.Timed]:
    """Runs on batches of one size; with generation every row makes the same number of new tokens.

    meters: by side, where there are any.  options: of `timing.alternate`.
    """
    run = timing.timed_call(work.method, work.batches(batch, rounds), **work.fixed)
    return timing.alternate(sides, run, rounds=rounds, budget_s=budget_s, meters=meters, after=idle.wait, **options)


def latency(sides: Mapping[str, Client], work: Workload, *, rounds: int, budget_s: float, **options: Any) -> dict[str, timing.Timed]:
    """Single inputs answered as a user gets them, each to its natural end. options: of `timing.alternate`."""
    batches = work.batches(1, rounds)
    run = timing.timed_call(work.method, batches, **work.natural)
    least, fewest = min(20, rounds), min(10, rounds)
    rounds = max(len(batches), 20)
    return timing.alternate(sides, run, rounds=rounds, least=least, fewest=fewest, budget_s=budget_s, after=idle.wait, **options)
