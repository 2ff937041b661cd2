"""The loss that one module alone causes in a model's answers under a scheme.

Encoder-decoders are held against fp32 token by token, over answers that fp32 gave: the mean Kullback-Leibler divergence of the next token's
distribution, all rows in one batch of cached steps. Language models: see `decoding`. Others: the relative error of all outputs, squared, so
that the losses of modules add up as variances do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxport.errors import DataError
from onnxport.graph import search_graphs
from onnxport.graph.session import opened, real
from onnxport.runtime.bundle.kept import lost
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import NO_IDS, DecoderState
from onnxport.runtime.sessions import Sessions

ROWS = 32  # texts
STEPS = 24  # tokens of each that are compared
NUMBERS = 2**27  # most logits that are held
KL, ERROR = "kl_divergence", "squared_relative_error"

Graphs = Mapping[str, ir.Model]


class Meter(Protocol):
    """Measures the loss of changed graphs against those of fp32."""

    def loss(self, changed: Graphs) -> float:
        """The loss of a model with the changed graphs, by role; 0 without any, inf where an answer is not finite."""


class DivergenceLoss:
    """The divergence of graphs of a model that generates, in nats a token.

    engine: of the fp32 variant. sources: ids of inputs. targets: ids that are read one by one.
    """

    def __init__(self, engine: Engine, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], sessions: Sessions) -> None:
        self._engine, self._sessions = engine, sessions
        room = max(1, NUMBERS // engine.vocab_size)
        steps = max(1, min(STEPS, room // max(1, min(ROWS, len(targets)))))
        start = engine.config.decoder_start_id
        before = [0 if start is None else start]
        order = sorted(range(len(targets)), key=lambda i: -len(targets[i]))
        self._prefixes, self._targets = [before for _ in order], [list(targets[i])[: steps - 1] for i in order]
        self._sources = [sources[i] for i in order]
        self._cross = engine.encode(self._sources)
        self._expected = [(np.exp(logs), logs) for logs in self._logs(engine, self._cross)]

    def loss(self, changed: Graphs) -> float:
        """Mean over all positions; graphs that are not given are those of fp32. inf where an answer is not finite."""
        changed = {role: search_graphs.add_choice(model) if role == "decoder" else model for role, model in changed.items()}
        with opened(changed, sessions=self._sessions) as runners:
            engine = copy.copy(self._engine)
            cross = self._cross
            if "decoder" in runners:
                engine.decoder = runners["decoder"].session
            if "encoder" in runners:
                engine.encoder = runners["encoder"].session
                cross = engine.encode(self._sources)
            total, count = 0.0, 0
            for (shares, logs), found in zip(self._expected, self._logs(engine, cross), strict=True):
                total += float(lost(shares, logs, found).sum(dtype=np.float64))
                count += len(found)
        return max(total / count, 0.0) if np.isfinite(total) else float("inf")

    def _logs(self, engine: Engine, cross: Any) -> Iterator[np.ndarray]:
        """log-softmax float32 [rows that are left, vocabulary] of each step."""
        state = DecoderState(engine, cross, self._prefixes, len(self._targets[0]) + 1)
        state.request_top(1, NO_IDS)
        left = len(self._targets)
        for step in range(len(self._targets[0]) + 1):
            while len(self._targets[left - 1]) < step:
                left -= 1
                state.active[left] = False
            if step:
                state.ids[:left, 0] = [row[step - 1] for row in self._targets[:left]]
            state.advance()
            logits = state.logits.numpy()[:left]
            top = logits.max(1, keepdims=True)
            yield logits - (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))


class OutputLoss:
    """The squared relative error of the one graph of a model that answers in one pass; of all float outputs the worst counts."""

    def __init__(self, reference: Graphs, feeds: Sequence[Mapping[str, np.ndarray]], sessions: Sessions) -> None:
        self._feeds, self._sessions = feeds, sessions
        self._expected = self._run(reference)

    def loss(self, changed: Graphs) -> float:
        """Mean of squares of the difference over the reference's own about its mean; inf where an answer is not finite."""
        wrong: dict[str, float] = {}
        whole: dict[str, float] = {}
        for expected, found in zip(self._expected, self._run(changed), strict=True):
            for name, a in expected.items():
                b = found[name].astype(np.float64)
                wrong[name] = wrong.get(name, 0.0) + (float(np.square(a - b).sum()) if np.isfinite(b).all() else float("inf"))
                whole[name] = whole.get(name, 0.0) + float(np.square(a - a.mean(-1, keepdims=True) if a.shape[-1:] > (1,) else a).sum())
        return max(wrong[name] / (whole[name] or 1.0) for name in wrong)

    def _run(self, graphs: Graphs) -> list[dict[str, np.ndarray]]:
        with opened(graphs, sessions=self._sessions, steady=False) as runners:
            (runner,) = runners.values()
            names = [name for name, value in runner.outputs.items() if value.type in ("tensor(float)", "tensor(float16)", "tensor(double)")]
            found = [
                {name: real(np.asarray(array), feed).astype(np.float64) for name, array in values.items()}
                for feed, values in zip(self._feeds, runner.run(self._feeds, names), strict=True)
            ]
        if not names:
            raise DataError("the model gives no float outputs, so no loss of precision can be measured; name a plan with --plan")
        return found
