"""The quality of a variant by the metrics of `compare`, measured in this process for every plan that a search tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from onnxport.compare import metrics
from onnxport.compare.measure import measurement
from onnxport.compare.protocol.bundle_side import BundleSide
from onnxport.compare.protocol.client import Client
from onnxport.compare.scores import Statistics
from onnxport.compare.speed import LEAST_ROUNDS
from onnxport.compare.workload import Workload
from onnxport.quantize.auto.kernel_times import alternate
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.model import Model
from onnxport.runtime.sessions import Sessions
from onnxport.runtime.verify import replay

BATCH = 32
PARITY = (
    "max_abs_diff",
    "relative_error",
    "argmax_agreement",
    "greedy_agreement",
    "kl",
    "top1_agreement",
    "perplexity_change",
)  # but not its cosine: metrics have one of that name, on data
# Metrics of a sample of texts: chance moves them. Others are of numbers that come out the same on other data, nearly.
EXACT = frozenset({"max_abs_diff", "relative_error", "cosine", "cosine_drop", "kl"})


def measured(work: Workload, path: str) -> tuple[str, ...]:
    """What is measured on the data for the metric that counts: "answers", "likelihoods", both, or nothing."""
    name = path.partition(".")[0]
    if work.scored is None:
        return ("answers", "likelihoods")
    if name in PARITY:
        return ()
    return ("likelihoods",) if name.startswith("perplexity") else ("answers", "likelihoods")


class _InProcessClient:
    """A variant that answers as a `Client` of compare does, without a process of its own."""

    def __init__(self, bundle: Bundle, name: str, sessions: Sessions) -> None:
        self._side = BundleSide(str(bundle.path), name, sessions.device, sessions.threads)
        self._side.model = Model(bundle, name, sessions)

    def call(self, method: str, inputs: Any, **options: Any) -> tuple[Any, float]:
        """The answer and the seconds that it took, as `Client.call`."""
        started = time.perf_counter()
        return getattr(self._side, method)(inputs, **options), time.perf_counter() - started


class Quality:
    """Measures variants on a workload, against the fp32 variant of `bundle`. work: see `compare.workload`.

    path: of the metric that counts. Of language models nothing else is measured that takes texts of the data: golden texts, the likelihood
    of the data's, and continuations of these take minutes each.
    """

    def __init__(self, bundle: Bundle, work: Workload, sessions: Sessions, path: str) -> None:
        self._measured = measured(work, path)
        self._work, self._sessions = work, sessions
        self._outputs, self._extra = self._answers(bundle, "fp32")
        self._statistics = self._statistics_of(self._outputs, self._extra)
        self.reference = self.values(bundle, "fp32", (self._outputs, self._extra))

    def values(self, bundle: Bundle, name: str, answers: tuple[list[Any], list[Any]] | None = None) -> dict[str, Any]:
        """A variant's metrics, with their drops and intervals, by the names that a report has for them."""
        outputs, extra = answers or self._answers(bundle, name)
        parity = replay(bundle, name, self._sessions.device, self._sessions.threads)
        values: dict[str, Any] = {key: parity[key] for key in PARITY if isinstance(parity.get(key), int | float)}
        if not parity.get("finite"):
            return {}
        if self._work.method != "run":
            own = self._statistics_of(outputs, extra)
            values |= (metrics.agreement(outputs, self._outputs) if outputs else {}) | metrics.values(own)
            values |= metrics.drops(values, metrics.values(self._statistics)) | metrics.drop_intervals(own, self._statistics)
        return values

    def _statistics_of(self, outputs: list[Any], extra: list[Any]) -> Statistics:
        there = extra or self._work.scored is None
        return measurement.statistics_of(self._work, outputs, extra, self._outputs) if there else {}

    def _answers(self, bundle: Bundle, name: str) -> tuple[list[Any], list[Any]]:
        if self._work.method == "run":
            return [], []
        sides = {name: cast(Client, _InProcessClient(bundle, name, self._sessions))}
        outputs = measurement.answers(sides, self._work, BATCH)[0][name] if "answers" in self._measured else []
        request = self._work.extra_request
        extra = measurement.request_outputs(sides, request)[0][name] if request is not None and "likelihoods" in self._measured else []
        return outputs, extra


def seconds(
    bundle: Bundle, names: list[str], work: Workload, batch: int, sessions: Sessions, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds of an answer by variant in every round, all doing the same amount of work in turn."""
    chunks = work.batches(batch, rounds)
    rows = 1 if work.method == "run" else batch

    def run(name: str) -> Callable[[], Any]:
        side, turn = _InProcessClient(bundle, name, sessions), iter(range(10**9))
        return lambda: side.call(work.method, chunks[next(turn) % len(chunks)], **work.fixed)

    taken = alternate({name: run(name) for name in names}, rounds, LEAST_ROUNDS, budget)
    return {name: [one / rows for one in found] for name, found in taken.items()}
