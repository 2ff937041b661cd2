"""Choosing the next tokens with the search graphs: logits stay OrtValues, only ids and log-probabilities reach the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxport.errors import OnnxportError
from onnxport.runtime.engine import Engine
from onnxport.runtime.options import Options
from onnxport.runtime.session import empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


class Graph:
    """One search graph with its inputs and outputs bound; host arrays are rebound where a device copied them."""

    def __init__(self, engine: Engine, name: str, values: dict[str, onnxruntime.OrtValue], arrays: dict[str, np.ndarray]) -> None:
        self._session = engine.search(name)
        self._binding = self._session.io_binding()
        self._arrays, self._copied = arrays, engine.device != "cpu"
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


class Processor:
    """`process` over a batch's logits: repetition penalty and ids that must not come."""

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, rows: int, penalty: float) -> None:
        self.processed = empty_value((rows, engine.vocab_size), np.float32, engine.device)
        self._suppressed = np.array(engine.config.eos_ids, np.int64)
        self._none = np.zeros(0, np.int64)
        fixed: dict[str, np.ndarray] = {
            "history": np.zeros((rows, 1), np.int64),
            "penalty": np.array(penalty, np.float32),
            "suppressed": self._none,
        }
        self._graph = Graph(engine, "process", {"logits": logits}, fixed)
        self._graph.into("processed", self.processed)

    def run(self, history: np.ndarray | None, suppress: bool) -> None:
        """Write `processed`. history int64 [rows, L], padded by an id of the row; None without a penalty."""
        self._graph.array("suppressed", self._suppressed if suppress else self._none)
        if history is not None:
            self._graph.array("history", np.ascontiguousarray(history))
        self._graph.run()


class TokenChooser:
    """Greedy choice or sampling of one token a row.

    Writes ids int64 [rows, 1] (the decoder's next input) and `logprobs` float32 [rows]. A greedy log-probability is the model's own; a
    sampled one is of the distribution before temperature and filters, after penalty and suppression.
    """

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, ids: np.ndarray, options: Options) -> None:
        rows = len(ids)
        self.logprobs, self._tokens, self._options = np.zeros(rows, np.float32), ids.reshape(rows), options
        self._eos = engine.config.eos_ids
        self._uniform = np.zeros(rows, np.float32)
        self._engine, self._logits = engine, logits
        self._processor: Processor | None = None
        self._direct = self._graph(logits)
        self._processed: Graph | None = None

    def choose(
        self, suppress: bool, history: np.ndarray | None = None, generators: list[np.random.Generator] | None = None
    ) -> tuple[list[int], list[float]]:
        """Choose a token for every row; gives the tokens and their log-probabilities, which `ids` and `logprobs` hold too.

        `suppress`: no eos; `history`: for a repetition penalty; `generators`: one a row, to sample.
        """
        if generators is not None:
            self._uniform[:] = [g.random(dtype=np.float32) for g in generators]
        if self._options.repetition_penalty != 1.0 or (suppress and self._options.sampling):
            self._run_processed(history, suppress)
        else:
            self._direct.run()
            if suppress:
                self._second_best()
        tokens: list[int] = self._tokens.tolist()
        logprobs: list[float] = self.logprobs.tolist()
        if any(value != value for value in logprobs):  # NaN; a list of a few is faster than NumPy
            raise OnnxportError("the model's scores are not finite; use a variant of higher precision and check the model")
        return tokens, logprobs

    def _second_best(self) -> None:
        """Choose again where greedy took an eos that may not come yet: rare, so that most steps pay nothing for it."""
        chosen = [token in self._eos for token in self._tokens.tolist()]
        if True not in chosen:
            return
        taken = np.array(chosen)
        tokens, logprobs = self._tokens.copy(), self.logprobs.copy()
        self._run_processed(None, True)
        if len(self._eos) == 1:  # the share of all other tokens takes the log-probability back to the whole vocabulary
            self.logprobs += np.log1p(-np.minimum(np.exp(logprobs), np.float32(1 - 1e-7)))
        self._tokens[~taken] = tokens[~taken]
        self.logprobs[~taken] = logprobs[~taken]

    def _run_processed(self, history: np.ndarray | None, suppress: bool) -> None:
        if self._processor is None or self._processed is None:
            self._processor = Processor(self._engine, self._logits, len(self._tokens), self._options.repetition_penalty)
            self._processed = self._graph(self._processor.processed)
        self._processor.run(history, suppress)
        self._processed.run()

    def _graph(self, logits: onnxruntime.OrtValue) -> Graph:
        options, arrays, name = self._options, {}, "greedy"
        if options.sampling:
            name = "sample_full"
            temperature = 1.0 if options.temperature is None else options.temperature
            arrays = {"temperature": np.array(temperature, np.float32), "uniform": self._uniform}
            if options.top_k or (options.top_p is not None and options.top_p < 1):
                name, most = "sample", self._engine.vocab_size
                arrays["top_k"] = np.array([min(options.top_k or most, most)], np.int64)
                arrays["top_p"] = np.array(1.0 if options.top_p is None else options.top_p, np.float32)
        graph = Graph(self._engine, name, {"logits": logits}, arrays)
        graph.into("token", value_of(self._tokens))
        graph.into("logprob", value_of(self.logprobs))
        return graph


class BeamChooser:
    """The best continuations of a batch's beams."""

    def __init__(self, engine: Engine, logits: onnxruntime.OrtValue, inputs: int, beams: int, penalty: float) -> None:
        self.scores = np.zeros((inputs, beams), np.float32)
        self._penalized = penalty != 1.0
        self._processor = Processor(engine, logits, inputs * beams, penalty) if self._penalized else None
        source = self._processor.processed if self._processor else logits
        self._session, self._copied = engine.search("beam"), engine.device != "cpu"
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("logits", source)

    def choose(self, candidates: int, history: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """value float32 [inputs, C] (best first) and index int64 [inputs, C] into beams * vocabulary; C: `candidates` or all."""
        if self._processor is not None:
            self._processor.run(history, False)
        self._binding.bind_ortvalue_input("scores", value_of(self.scores))
        self._binding.bind_ortvalue_input("candidates", value_of(np.array([candidates], np.int64)))
        for name in ("value", "index"):
            self._binding.bind_output(name, "cpu")
        run_bound(self._session, self._binding)
        value, index = (v.numpy() for v in self._binding.get_outputs())
        if np.isnan(value).any():
            raise OnnxportError("the model's scores are not finite; use a variant of higher precision and check the model")
        return value, index
