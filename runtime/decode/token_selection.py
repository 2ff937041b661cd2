"""Selection of the next tokens with the search graphs: one token a row (greedy, sampling), or the best continuations of beams.

A decoder gives its best tokens beside the logits. They suffice where no rule changes the logits of single rows; else the graph `process`
writes the rules into the logits, and the selection is made from what it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxport.errors import BundleError, OnnxportError
from onnxport.runtime.bundle.interface import BEST, BIAS, BIASED, CANDIDATES, LOGITS, MASK, SUPPRESSED
from onnxport.runtime.decode.constraints import Rules
from onnxport.runtime.decode.engine import Engine, optional_inputs
from onnxport.runtime.decode.state import NO_IDS, BestTokens
from onnxport.runtime.options import Sampling
from onnxport.runtime.sessions import empty_value, part, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


CHOICES = 4  # of the best tokens of rows whose answers have a format: mostly one of them may come, and no logits need be masked
# Ids suppressed for all rows that beams take as candidates and drop on the host; more than these are written into the logits.
MOST_DROPPED = 16
# Log of the share of the distribution below which what suppressed ids leave is too inexact to renormalize with.
LEAST_LOG_SHARE = np.log(0.1)

ANY = np.zeros((1, 1), np.float32)  # a mask: all ids may come

Candidate = tuple[float, int, int]  # score, beam it continues, token
Draw = tuple[Sampling, float]  # how a row's token is drawn, and by which random number from 0 to under 1
SAMPLERS = 64  # bindings of `sample` that are kept for settings and places of rows


class Outputs(Protocol):
    """What a selection reads; `DecoderState` offers it."""

    ids: np.ndarray
    logits: onnxruntime.OrtValue
    best: BestTokens
    beams: int

    def request_top(self, count: int, suppressed: np.ndarray) -> None:
        """See DecoderState."""
        ...


class TokenSelector:
    """Selection of one token a row: the best, or one that is drawn, each row as it asks for.

    Writes ids int64 [rows, 1] (the decoder's next input) and `logprobs` float32 [rows], log-probabilities after a bias and a repetition
    penalty and before temperature and filters: among all tokens, or, where the model renormalizes, among those that may come. A forced
    token has 0.
    """

    def __init__(self, engine: Engine, outputs: Outputs) -> None:
        rows = len(outputs.ids)
        self.logprobs, self._tokens = np.zeros(rows, np.float32), outputs.ids.reshape(rows)
        self._uniform = np.zeros(rows, np.float32)
        self._engine, self._outputs = engine, outputs
        self._processor: LogitsProcessor | None = None
        self._processed: BestSearch | None = None
        self._samplers: dict[tuple[bool, int, int, Sampling], SearchGraph] = {}

    def prepare(self, rules: Rules, draws: Sequence[Draw | None], told: int = 0) -> None:
        """Ask the decoder's next run for the best token of each row, and for the `told` best."""
        choices = CHOICES if rules.formats and not any(draws) else 1
        self._outputs.request_top(min(max(told, choices), self._engine.vocab_size), rules.suppressed)

    def select(self, rules: Rules, draws: Sequence[Draw | None], guessed: bool = False) -> tuple[list[int], list[float]]:
        """Select a token for every row; returns the tokens and their log-probabilities, which `ids` and `logprobs` hold too.

        draws: how each row's token is drawn; None for the best. guessed: rows may stand behind guesses, so that there may be one where no
        token may come: its log-probability is NaN. Else that is an OnnxportError.
        """
        self._uniform[:] = [0.0 if draw is None else draw[1] for draw in draws]
        if len(rules.forced) < len(self._tokens):
            if rules.by_row or ((rules.forbidden or rules.formats) and any(draws)):
                self._select_processed(rules, range(len(self._tokens)), draws)
            else:
                self._select_directly(rules, draws)
        for row, ids in rules.forced.items():
            self._tokens[row] = ids[int(self._uniform[row] * len(ids))]
            self.logprobs[row] = _forced_score(rules, ids)
        tokens: list[int] = self._tokens.tolist()
        logprobs: list[float] = self.logprobs.tolist()
        if not guessed and any(value != value for value in logprobs):  # NaN; a list of a few is faster than NumPy
            raise not_finite()
        return tokens, logprobs

    def _select_directly(self, rules: Rules, draws: Sequence[Draw | None]) -> None:
        """Select from the logits as they are, and again where greedy took what may not come: rare, so most steps pay nothing for it.

        Where a row's token is drawn there are no rules.
        """
        best = self._outputs.best
        self._tokens[:], self.logprobs[:] = best.token[:, 0], best.logprob[:, 0]
        if any(draws):
            self._draw(self._outputs.logits, draws, False)
            return
        if not rules.forbidden and not rules.formats:
            return
        wrong = [token in rules.forbidden for token in self._tokens.tolist()]
        for row in rules.formats:
            wrong[row] = rules.renormalize or not self._choose(rules, row)
        if rules.renormalize:
            wrong = [w or kept < LEAST_LOG_SHARE for w, kept in zip(wrong, best.kept.tolist(), strict=True)]
            self.logprobs -= best.kept
        if True in wrong:
            right = ~np.array(wrong)
            tokens, logprobs = self._tokens[right], self.logprobs[right]
            self._select_processed(rules, [row for row, w in enumerate(wrong) if w], draws)
            self._tokens[right], self.logprobs[right] = tokens, logprobs

    def _choose(self, rules: Rules, row: int) -> bool:
        """Take the best token of a row that may come, if it is among those that the decoder named."""
        best = self._outputs.best
        for place, token in enumerate(best.token[row, :CHOICES].tolist()):
            if token not in rules.forbidden and rules.allows(row, token):
                self._tokens[row], self.logprobs[row] = token, best.logprob[row, place]
                return True
        return False

    def told(self, row: int, count: int) -> list[tuple[int, float]]:
        """The model's `count` best tokens of a row with their log-probabilities before all rules."""
        best = self._outputs.best
        return list(zip(best.token[row, :count].tolist(), best.logprob[row, :count].tolist(), strict=True))

    def _select_processed(self, rules: Rules, rows: Collection[int], draws: Sequence[Draw | None]) -> None:
        """Select by logits into which the rules are written; formats count for these rows only."""
        if self._processor is None:
            self._processor = LogitsProcessor(self._engine, self._outputs.logits, len(self._tokens), False)
        processed = self._processor.processed
        self._processor.run(rules, rows)
        if None in draws:
            self._processed = self._processed or BestSearch(self._engine, processed, len(self._tokens), 1)
            best = self._processed.run()
            self._tokens[:], self.logprobs[:] = best.token[:, 0], best.logprob[:, 0]
        if any(draws):
            self._draw(processed, draws, True)
        if not rules.renormalize:
            self.logprobs += self._processor.kept

    def _draw(self, logits: onnxruntime.OrtValue, draws: Sequence[Draw | None], processed: bool) -> None:
        """Draw the tokens of rows that ask for it: neighbours with the same settings together. processed: which logits these are."""
        if len(self._samplers) > SAMPLERS:
            self._samplers.clear()
        stop = 0
        for sampling, same in groupby(draws, lambda draw: None if draw is None else draw[0]):
            start, stop = stop, stop + sum(1 for _ in same)
            if sampling is not None:
                key = processed, start, stop, sampling
                if key not in self._samplers:
                    self._samplers[key] = self._sampler(logits, start, stop, sampling)
                self._samplers[key].run()

    def _sampler(self, logits: onnxruntime.OrtValue, start: int, stop: int, sampling: Sampling) -> SearchGraph:
        name, some = "sample_full", slice(start, stop)
        arrays = {"temperature": np.array(sampling.temperature, np.float32), "uniform": self._uniform[some]}
        if sampling.top_k or sampling.top_p < 1:
            name, most = "sample", self._engine.vocab_size
            arrays["top_k"] = np.array([min(sampling.top_k or most, most)], np.int64)
            arrays["top_p"] = np.array(sampling.top_p, np.float32)
        # Rows with settings of their own meet in host memory only: on a device each call has a batch for itself.
        rows = logits if stop - start == len(self._tokens) else part(logits, start, stop)
        graph = SearchGraph(self._engine, name, {"logits": rows}, arrays)
        graph.bind_output("token", value_of(self._tokens[some]))
        graph.bind_output("logprob", value_of(self.logprobs[some]))
        return graph


class BeamSelector:
    """The best continuations of a batch's beams."""

    def __init__(self, engine: Engine, outputs: Outputs, inputs: int) -> None:
        self.scores = np.zeros((inputs, outputs.beams), np.float32)
        self._engine, self._outputs = engine, outputs
        self._processor: LogitsProcessor | None = None
        self._processed: BestSearch | None = None

    def prepare(self, rules: Rules, count: int, told: int = 0) -> None:
        """Ask the decoder's next run for the best tokens of each row, more where some may be suppressed, and for the `told` best."""
        few = len(rules.suppressed) <= MOST_DROPPED
        self._outputs.request_top(min(max(count + len(rules.suppressed) * few, told), self._engine.vocab_size), rules.suppressed)

    def told(self, row: int, count: int) -> list[tuple[int, float]]:
        """As of `TokenSelector`."""
        best = self._outputs.best
        return list(zip(best.token[row, :count].tolist(), best.logprob[row, :count].tolist(), strict=True))

    def select(self, rules: Rules, count: int) -> list[list[Candidate]]:
        """The `count` best candidates of every input that may come, best first; fewer where fewer may."""
        inputs, beams = self.scores.shape
        found: list[list[Candidate]] = [[] for _ in range(inputs)]
        if len(rules.forced) < inputs * beams:
            total, tokens = self._continuations(rules, count)
            width = total.shape[1] // beams
            order = np.argsort(-total, 1, kind="stable")[:, :count]
            scores, ids = np.take_along_axis(total, order, 1).tolist(), np.take_along_axis(tokens, order, 1).tolist()
            for one, values, places, names in zip(found, scores, (order // width).tolist(), ids, strict=True):
                one += [c for c in zip(values, places, names, strict=True) if c[0] != -np.inf]
        for first in rules.forced.keys() & range(0, inputs * beams, beams):  # the rows of an input are forced together
            ids = rules.forced[first]
            place, gain = first // beams, _forced_score(rules, ids)
            every = [(float(score) + gain, beam, i) for beam, score in enumerate(self.scores[place]) for i in ids]
            found[place] = sorted(every, key=lambda candidate: -candidate[0])[:count]
        if not all(found):
            raise not_finite()
        return found

    def _continuations(self, rules: Rules, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Summed scores float32 and tokens int64 [inputs, beams * C], beam by beam; what is suppressed scores -inf."""
        best, shape = self._outputs.best, (len(self.scores), -1)
        direct = not rules.by_row and not rules.formats and len(rules.suppressed) <= MOST_DROPPED
        if direct and not (rules.renormalize and rules.forbidden and (best.kept < LEAST_LOG_SHARE).any()):
            logprob = best.logprob - best.kept[:, None] if rules.renormalize else best.logprob
            for i in rules.suppressed.tolist():
                logprob = np.where(best.token == i, np.float32(-np.inf), logprob)
        else:
            if self._processor is None or self._processed is None:
                self._processor = LogitsProcessor(self._engine, self._outputs.logits, self.scores.size, True)
                self._processed = BestSearch(self._engine, self._processor.processed, self.scores.size, min(count, self._engine.vocab_size))
            self._processor.run(rules, range(self.scores.size))
            best = self._processed.run()
            # The graph normalizes its log-probabilities; adding the share that was kept takes that back.
            logprob = best.logprob if rules.renormalize else best.logprob + self._processor.kept[:, None]
        if np.isnan(logprob).any():
            raise not_finite()
        return (logprob + self.scores.reshape(-1, 1)).reshape(shape), best.token.reshape(shape)


class LogitsProcessor:
    """`process` over a batch's logits: the rules of a step written into them.

    `processed` holds what may come, `kept` float32 [rows] the log of its share. normalize: log-softmax first, as beams are scored.
    """

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, rows: int, normalize: bool) -> None:
        self.processed = empty_value((rows, engine.vocab_size), np.float32, engine.device)
        self.kept = np.zeros(rows, np.float32)
        self._shape, self._engine, self._logits = (rows, engine.vocab_size), engine, logits
        self._masking: SearchGraph | None = None
        self._mask: np.ndarray | None = None
        self._masked: set[int] = set()  # rows of it that are not all 0
        fixed: dict[str, np.ndarray] = {
            "history": np.zeros((rows, 1), np.int64),
            "penalty": np.array(1, np.float32),
            "suppressed": NO_IDS,
            "banned": np.zeros((0, 2), np.int64),
            "normalize": np.array(normalize, np.float32),
        }
        self._graph = SearchGraph(engine, "process", {"logits": logits}, fixed)
        self._graph.bind_output("processed", self.processed)
        self._graph.bind_output("kept", value_of(self.kept))

    def run(self, rules: Rules, rows: Collection[int]) -> None:
        """Write `processed` and `kept`; formats count for these rows only. Biases are there where the engine takes them."""
        mask = self._mask_of(rules, rows) if rules.formats else ANY
        if mask is not ANY and not rules.by_row and not rules.forbidden and self._engine.masks_alone:
            self._mask_alone(mask)
            return
        self._graph.bind_array("suppressed", rules.suppressed)
        banned = rules.banned
        if MASK in self._graph.optional:
            self._graph.bind_array(MASK, mask)
            self._graph.bind_array(BIASED, rules.biased)
            self._graph.bind_array(BIAS, rules.bias)
        elif mask is not ANY:  # an older bundle
            banned = np.concatenate([banned, np.argwhere(mask < 0)])
        self._graph.bind_array("banned", banned)
        if rules.history is not None:
            self._graph.bind_array("history", rules.history)
            self._graph.bind_array("penalty", np.array(rules.penalty, np.float32))
        self._graph.run()

    def _mask_alone(self, mask: np.ndarray) -> None:
        if self._masking is None:
            self._masking = SearchGraph(self._engine, "mask", {LOGITS: self._logits}, {MASK: mask})
            self._masking.bind_output("processed", self.processed)
            self._masking.bind_output("kept", value_of(self.kept))
        self._masking.bind_array(MASK, mask)
        self._masking.run()

    def _mask_of(self, rules: Rules, rows: Collection[int]) -> np.ndarray:
        """float32 [rows, vocabulary]: 0 for ids that the formats of these rows allow, -inf for others; 0 in other rows."""
        if self._mask is None:
            self._mask = np.zeros(self._shape, np.float32)
        masked = rules.formats.keys() & rows
        for row in self._masked - masked:
            self._mask[row] = 0
        for row in masked:
            answer_format, ids = rules.formats[row]
            answer_format.mask(ids, self._mask[row])
        self._masked = masked
        return self._mask


class BestSearch:
    """The search graph `best` over logits that were processed."""

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, rows: int, count: int) -> None:
        self.best = BestTokens.empty(rows, count)
        arrays = {CANDIDATES: np.array([count], np.int64), SUPPRESSED: NO_IDS}
        self._graph = SearchGraph(engine, "best", {LOGITS: logits}, arrays)
        for name in BEST:
            self._graph.bind_output(name, value_of(getattr(self.best, name)))

    def run(self) -> BestTokens:
        """The best tokens of what the logits hold now."""
        self._graph.run()
        return self.best


class SearchGraph:
    """One search graph with its inputs and outputs bound; host arrays are rebound where a device copied them."""

    def __init__(self, engine: Engine, name: str, values: dict[str, onnxruntime.OrtValue], arrays: dict[str, np.ndarray]) -> None:
        self._session = engine.search(name)
        self._binding = self._session.io_binding()
        self._arrays, self._copied = arrays, not engine.device.host_memory
        read, bound = {i.name for i in self._session.get_inputs()}, {*values, *arrays}
        self.optional = optional_inputs(self._session)
        if read != bound:
            raise BundleError(
                f"search graph {name!r} reads {', '.join(sorted(read))}, expected {', '.join(sorted(bound))}; export the model again"
            )
        for key, value in values.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, array in arrays.items():
            self._binding.bind_ortvalue_input(key, value_of(array))

    def bind_output(self, name: str, value: onnxruntime.OrtValue) -> None:
        """Bind an output."""
        self._binding.bind_ortvalue_output(name, value)

    def bind_array(self, name: str, array: np.ndarray) -> None:
        """Bind another host array as an input."""
        self._arrays[name] = array
        self._binding.bind_ortvalue_input(name, value_of(array))

    def run(self) -> None:
        """Run into the bound outputs."""
        if self._copied:
            for key, array in self._arrays.items():
                self._binding.bind_ortvalue_input(key, value_of(array))
        run_bound(self._session, self._binding)


def _forced_score(rules: Rules, ids: tuple[int, ...]) -> float:
    """The log-probability of each forced id: transformers scores them 0, before renormalizing."""
    return -math.log(len(ids)) if rules.renormalize else 0.0


def not_finite() -> OnnxportError:
    """What is raised where no token may come."""
    return OnnxportError(
        "the scores of the next tokens are not finite: no token may come any more, or the model is at fault; "
        "loosen the constraints, or use a variant of higher precision"
    )
