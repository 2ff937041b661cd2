"""A search graph with what it reads and writes bound to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxport.errors import BundleError, OnnxportError
from onnxport.runtime.decode.constraints import Rules
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import NOBODY, Best
from onnxport.runtime.options import Search
from onnxport.runtime.sessions import empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


class Graph:
    """One search graph with its inputs and outputs bound; host arrays are rebound where a device copied them."""

    def __init__(self, engine: Engine, name: str, values: dict[str, onnxruntime.OrtValue], arrays: dict[str, np.ndarray]) -> None:
        self._session = engine.search(name)
        self._binding = self._session.io_binding()
        self._arrays, self._copied = arrays, not engine.device.host_memory
        read, given = {i.name for i in self._session.get_inputs()}, {*values, *arrays}
        if read != given:
            raise BundleError(
                f"search graph {name!r} reads {', '.join(sorted(read))}, expected {', '.join(sorted(given))}; export the model again"
            )
        for key, value in values.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, array in arrays.items():
            self._binding.bind_ortvalue_input(key, value_of(array))

    def into(self, name: str, value: onnxruntime.OrtValue) -> None:
        """Bind an output."""
        self._binding.bind_ortvalue_output(name, value)

    def array(self, name: str, array: np.ndarray) -> None:
        """Bind another host array as an input."""
        self._arrays[name] = array
        self._binding.bind_ortvalue_input(name, value_of(array))

    def run(self) -> None:
        """Run into the bound outputs."""
        if self._copied:
            for key, array in self._arrays.items():
                self._binding.bind_ortvalue_input(key, value_of(array))
        run_bound(self._session, self._binding)


FEW = 16  # suppressed ids that beams carry along as candidates, to be dropped on the host; more are written into the logits
SCANT = np.log(0.1)  # a share of the distribution below which the sum of what was left out is not exact enough to renormalize with

Candidate = tuple[float, int, int]  # score, beam it continues, token


class Processor:
    """`process` over a batch's logits: the rules of a step written into them.

    `processed` holds what may come, `kept` float32 [rows] the log of its share. normalize: log-softmax first, as beams are scored.
    """

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, rows: int, normalize: bool) -> None:
        self.processed = empty_value((rows, engine.vocab_size), np.float32, engine.device)
        self.kept = np.zeros(rows, np.float32)
        fixed: dict[str, np.ndarray] = {
            "history": np.zeros((rows, 1), np.int64),
            "penalty": np.array(1, np.float32),
            "suppressed": NOBODY,
            "banned": np.zeros((0, 2), np.int64),
            "normalize": np.array(normalize, np.float32),
        }
        self._graph = Graph(engine, "process", {"logits": logits}, fixed)
        self._graph.into("processed", self.processed)
        self._graph.into("kept", value_of(self.kept))

    def run(self, rules: Rules) -> None:
        """Write `processed` and `kept`."""
        self._graph.array("suppressed", rules.suppressed)
        self._graph.array("banned", rules.banned)
        if rules.history is not None:
            self._graph.array("history", rules.history)
            self._graph.array("penalty", np.array(rules.penalty, np.float32))
        self._graph.run()


class Source(Protocol):
    """What the choosers read: `Running` is one."""

    ids: np.ndarray
    logits: onnxruntime.OrtValue
    best: Best
    beams: int

    def ask(self, count: int, suppressed: np.ndarray) -> None:
        """See Running."""
        ...


class BestOf:
    """The search graph `best` over logits that were processed."""

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, rows: int, count: int) -> None:
        self.best = Best.empty(rows, count)
        arrays = {"candidates": np.array([count], np.int64), "suppressed": NOBODY}
        self._graph = Graph(engine, "best", {"logits": logits}, arrays)
        for name in ("token", "logprob", "kept"):
            self._graph.into(name, value_of(getattr(self.best, name)))

    def run(self) -> Best:
        """The best tokens of what the logits hold now."""
        self._graph.run()
        return self.best


class TokenChooser:
    """Greedy choice or sampling of one token a row.

    Writes ids int64 [rows, 1] (the decoder's next input) and `logprobs` float32 [rows], log-probabilities after a repetition penalty and
    before temperature and filters: among all tokens, or, where the model renormalizes, among those that may come. A forced token has 0.
    """

    def __init__(self, engine: Engine, source: Source, search: Search) -> None:
        rows = len(source.ids)
        self.logprobs, self._tokens, self._search = np.zeros(rows, np.float32), source.ids.reshape(rows), search
        self._uniform = np.zeros(rows, np.float32)
        self._engine, self._source = engine, source
        self._processor: Processor | None = None
        self._sample = self._sampler(source.logits) if search.sampling else None
        self._processed: Graph | BestOf | None = None

    def prepare(self, rules: Rules) -> None:
        """Before the decoder runs: say what it is to tell."""
        self._source.ask(1, rules.suppressed)

    def choose(self, rules: Rules, generators: list[np.random.Generator] | None = None) -> tuple[list[int], list[float]]:
        """Choose a token for every row; gives the tokens and their log-probabilities, which `ids` and `logprobs` hold too.

        `generators`: one a row, to sample.
        """
        if generators is not None:
            self._uniform[:] = [g.random(dtype=np.float32) for g in generators]
        if len(rules.forced) < len(self._tokens):
            if rules.by_row or (rules.forbidden and self._search.sampling):
                self._choose_processed(rules)
            else:
                self._choose_directly(rules)
        for row, ids in rules.forced.items():
            self._tokens[row] = ids[int(self._uniform[row] * len(ids))]
            self.logprobs[row] = _forced_score(rules, ids)
        tokens: list[int] = self._tokens.tolist()
        logprobs: list[float] = self.logprobs.tolist()
        if any(value != value for value in logprobs):  # NaN; a list of a few is faster than NumPy
            raise _not_finite()
        return tokens, logprobs

    def _choose_directly(self, rules: Rules) -> None:
        """Choose from the logits as they are, and again where greedy took what may not come: rare, so most steps pay nothing for it."""
        if self._sample is not None:
            self._sample.run()
            return
        best = self._source.best
        self._tokens[:], self.logprobs[:] = best.token[:, 0], best.logprob[:, 0]
        if not rules.forbidden:
            return
        wrong = [token in rules.forbidden for token in self._tokens.tolist()]
        if rules.renormalize:
            wrong = [w or kept < SCANT for w, kept in zip(wrong, best.kept.tolist(), strict=True)]
            self.logprobs -= best.kept
        if True in wrong:
            right = ~np.array(wrong)
            tokens, logprobs = self._tokens[right], self.logprobs[right]
            self._choose_processed(rules)
            self._tokens[right], self.logprobs[right] = tokens, logprobs

    def _choose_processed(self, rules: Rules) -> None:
        if self._processor is None:
            self._processor = Processor(self._engine, self._source.logits, len(self._tokens), False)
        processed = self._processor.processed
        self._processor.run(rules)
        if self._search.sampling:
            self._processed = self._processed or self._sampler(processed)
            self._processed.run()
        else:
            self._processed = self._processed or BestOf(self._engine, processed, len(self._tokens), 1)
            best = self._processed.run()
            assert best is not None
            self._tokens[:], self.logprobs[:] = best.token[:, 0], best.logprob[:, 0]
        if not rules.renormalize:
            self.logprobs += self._processor.kept

    def _sampler(self, logits: onnxruntime.OrtValue) -> Graph:
        search, name = self._search, "sample_full"
        arrays = {"temperature": np.array(search.temperature, np.float32), "uniform": self._uniform}
        if search.top_k or search.top_p < 1:
            name, most = "sample", self._engine.vocab_size
            arrays["top_k"] = np.array([min(search.top_k or most, most)], np.int64)
            arrays["top_p"] = np.array(search.top_p, np.float32)
        graph = Graph(self._engine, name, {"logits": logits}, arrays)
        graph.into("token", value_of(self._tokens))
        graph.into("logprob", value_of(self.logprobs))
        return graph


class BeamChooser:
    """The best continuations of a batch's beams."""

    def __init__(self, engine: Engine, source: Source, inputs: int) -> None:
        self.scores = np.zeros((inputs, source.beams), np.float32)
        self._engine, self._source = engine, source
        self._processor: Processor | None = None
        self._processed: BestOf | None = None

    def prepare(self, rules: Rules, count: int) -> None:
        """Before the decoder runs: say what it is to tell. Suppressed ids may be among the best, so more are asked for."""
        few = len(rules.suppressed) <= FEW
        self._source.ask(min(count + len(rules.suppressed) * few, self._engine.vocab_size), rules.suppressed)

    def choose(self, rules: Rules, count: int) -> list[list[Candidate]]:
        """The `count` best candidates of every input that may come, best first; fewer where fewer may."""
        inputs, beams = self.scores.shape
        found: list[list[Candidate]] = [[] for _ in range(inputs)]
        if len(rules.forced) < inputs * beams:
            total, tokens = self._continuations(rules, count)
            width = total.shape[1] // beams
            order = np.argsort(-total, 1, kind="stable")[:, :count]
            chosen, ids = np.take_along_axis(total, order, 1).tolist(), np.take_along_axis(tokens, order, 1).tolist()
            for one, scores, places, names in zip(found, chosen, (order // width).tolist(), ids, strict=True):
                one += [c for c in zip(scores, places, names, strict=True) if c[0] != -np.inf]
        for first in rules.forced.keys() & range(0, inputs * beams, beams):  # the rows of an input are forced together
            ids = rules.forced[first]
            place, gain = first // beams, _forced_score(rules, ids)
            every = [(float(score) + gain, beam, i) for beam, score in enumerate(self.scores[place]) for i in ids]
            found[place] = sorted(every, key=lambda candidate: -candidate[0])[:count]
        if not all(found):
            raise _not_finite()
        return found

    def _continuations(self, rules: Rules, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Summed scores float32 and tokens int64 [inputs, beams * C], beam by beam; what is suppressed scores -inf."""
        best, shape = self._source.best, (len(self.scores), -1)
        direct = not rules.by_row and len(rules.suppressed) <= FEW
        if direct and not (rules.renormalize and rules.forbidden and (best.kept < SCANT).any()):
            logprob = best.logprob - best.kept[:, None] if rules.renormalize else best.logprob
            for i in rules.suppressed.tolist():
                logprob = np.where(best.token == i, np.float32(-np.inf), logprob)
        else:
            if self._processor is None or self._processed is None:
                self._processor = Processor(self._engine, self._source.logits, self.scores.size, True)
                self._processed = BestOf(self._engine, self._processor.processed, self.scores.size, min(count, self._engine.vocab_size))
            self._processor.run(rules)
            best = self._processed.run()
            # What the graph gives is normalized; the share that was kept takes it back.
            logprob = best.logprob if rules.renormalize else best.logprob + self._processor.kept[:, None]
        if np.isnan(logprob).any():
            raise _not_finite()
        return (logprob + self.scores.reshape(-1, 1)).reshape(shape), best.token.reshape(shape)


def _forced_score(rules: Rules, ids: tuple[int, ...]) -> float:
    """The log-probability of each forced id: transformers scores them 0, before renormalizing."""
    return -math.log(len(ids)) if rules.renormalize else 0.0


def _not_finite() -> OnnxportError:
    return OnnxportError(
        "the scores of the next tokens are not finite: no token may come any more, or the model is at fault; "
        "loosen the constraints, or use a variant of higher precision"
    )
