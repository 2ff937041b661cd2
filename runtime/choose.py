"""Choosing the next tokens with the search graphs: logits stay OrtValues, only ids and log-probabilities reach the host.

The rules of a step (see `constraints`) are applied here and nowhere else. The choice is made first, from the logits as they are; only where
rules of single rows ask for it, or where what came must not come, the logits are processed and the choice made from the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from onnxport.errors import OnnxportError
from onnxport.runtime.constraints import Rules
from onnxport.runtime.engine import Engine
from onnxport.runtime.graph import Graph
from onnxport.runtime.options import Search
from onnxport.runtime.session import empty_value, value_of

if TYPE_CHECKING:
    import onnxruntime

NOBODY = np.zeros(0, np.int64)
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


class TokenChooser:
    """Greedy choice or sampling of one token a row.

    Writes ids int64 [rows, 1] (the decoder's next input) and `logprobs` float32 [rows], log-probabilities after a repetition penalty and
    before temperature and filters: among all tokens, or, where the model renormalizes, among those that may come. A forced token has 0.
    """

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, ids: np.ndarray, search: Search) -> None:
        rows = len(ids)
        self.logprobs, self._tokens, self._search = np.zeros(rows, np.float32), ids.reshape(rows), search
        self._uniform, self._kept = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        self._engine, self._logits, self._suppressed = engine, logits, NOBODY
        self._processor: Processor | None = None
        self._direct = self._graph(logits)
        self._processed: Graph | None = None

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
        if not self._search.sampling and rules.suppressed is not self._suppressed:
            self._suppressed = rules.suppressed
            self._direct.array("suppressed", rules.suppressed)
        self._direct.run()
        if not rules.forbidden:
            return
        wrong = [token in rules.forbidden for token in self._tokens.tolist()]
        if rules.renormalize:
            wrong = [w or kept < SCANT for w, kept in zip(wrong, self._kept.tolist(), strict=True)]
            self.logprobs -= self._kept
        if True in wrong:
            right = ~np.array(wrong)
            tokens, logprobs = self._tokens[right], self.logprobs[right]
            self._choose_processed(rules)
            self._tokens[right], self.logprobs[right] = tokens, logprobs

    def _choose_processed(self, rules: Rules) -> None:
        if self._processor is None or self._processed is None:
            self._processor = Processor(self._engine, self._logits, len(self._tokens), False)
            self._processed = self._graph(self._processor.processed)
        self._processor.run(rules)
        self._processed.run()
        if not rules.renormalize:
            self.logprobs += self._processor.kept

    def _graph(self, logits: onnxruntime.OrtValue) -> Graph:
        search, name = self._search, "greedy"
        arrays: dict[str, np.ndarray] = {"suppressed": NOBODY}
        if search.sampling:
            name = "sample_full"
            arrays = {"temperature": np.array(search.temperature, np.float32), "uniform": self._uniform}
            if search.top_k or search.top_p < 1:
                name, most = "sample", self._engine.vocab_size
                arrays["top_k"] = np.array([min(search.top_k or most, most)], np.int64)
                arrays["top_p"] = np.array(search.top_p, np.float32)
        graph = Graph(self._engine, name, {"logits": logits}, arrays)
        graph.into("token", value_of(self._tokens))
        graph.into("logprob", value_of(self.logprobs))
        if name == "greedy":
            graph.into("kept", value_of(self._kept))
        return graph


class BeamChooser:
    """The best continuations of a batch's beams."""

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, inputs: int, beams: int) -> None:
        self.scores = np.zeros((inputs, beams), np.float32)
        self._engine, self._logits = engine, logits
        self._direct = self._graph(logits)
        self._processor: Processor | None = None
        self._processed: Graph | None = None

    def choose(self, rules: Rules, count: int) -> list[list[Candidate]]:
        """The `count` best candidates of every input that may come, best first; fewer where fewer may."""
        inputs, beams = self.scores.shape
        found: list[list[Candidate]] = [[] for _ in range(inputs)]
        if len(rules.forced) < inputs * beams:
            value, index = self._best(rules, count)
            vocabulary = self._engine.vocab_size
            for one, values, places in zip(found, value.tolist(), index.tolist(), strict=True):
                for score, at in zip(values, places, strict=True):
                    if at % vocabulary not in rules.forbidden and score != -np.inf and len(one) < count:
                        one.append((score, at // vocabulary, at % vocabulary))
        for first in rules.forced.keys() & range(0, inputs * beams, beams):  # the rows of an input are forced together
            ids = rules.forced[first]
            place, gain = first // beams, _forced_score(rules, ids)
            every = [(float(score) + gain, beam, i) for beam, score in enumerate(self.scores[place]) for i in ids]
            found[place] = sorted(every, key=lambda candidate: -candidate[0])[:count]
        if not all(found):
            raise _not_finite()
        return found

    def _best(self, rules: Rules, count: int) -> tuple[np.ndarray, np.ndarray]:
        """value float32 [inputs, C], best first, and index int64 [inputs, C] into beams * vocabulary, suppressed ids among them."""
        if not rules.by_row and len(rules.suppressed) <= FEW:
            more = count + self.scores.shape[1] * len(rules.suppressed)
            value, index, kept = _continuations(self._direct, self.scores, more, rules.suppressed, rules.renormalize)
            if not (rules.renormalize and rules.forbidden and (kept < SCANT).any()):
                return value, index
        if self._processor is None or self._processed is None:
            self._processor = Processor(self._engine, self._logits, self.scores.size, True)
            self._processed = self._graph(self._processor.processed)
        self._processor.run(rules)
        # What the graph gives is normalized; the share that was kept takes it back.
        back = 0 if rules.renormalize else self._processor.kept.reshape(self.scores.shape)
        value, index, _ = _continuations(self._processed, self.scores + back, count, NOBODY, False)
        return value, index

    def _graph(self, logits: onnxruntime.OrtValue) -> Graph:
        arrays: dict[str, np.ndarray] = {
            "scores": self.scores,
            "candidates": np.ones(1, np.int64),
            "suppressed": NOBODY,
            "renormalize": np.array(False),
        }
        return Graph(self._engine, "beam", {"logits": logits}, arrays)


def _continuations(
    graph: Graph, scores: np.ndarray, count: int, suppressed: np.ndarray, renormalize: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a `beam` graph: value float32 and index int64 [inputs, C], kept float32 [rows]."""
    graph.array("scores", scores)
    graph.array("candidates", np.array([count], np.int64))
    graph.array("suppressed", suppressed)
    graph.array("renormalize", np.array(renormalize))
    value, index, kept = graph.outputs("value", "index", "kept")
    if np.isnan(value).any():
        raise _not_finite()
    return value, index, kept


def _forced_score(rules: Rules, ids: tuple[int, ...]) -> float:
    """The log-probability of each forced id: transformers scores them 0, before renormalizing."""
    return -math.log(len(ids)) if rules.renormalize else 0.0


def _not_finite() -> OnnxportError:
    return OnnxportError(
        "the scores of the next tokens are not finite: no token may come any more, or the model is at fault; "
        "loosen the constraints, or use a variant of higher precision"
    )
