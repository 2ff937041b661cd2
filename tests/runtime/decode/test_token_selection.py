"""The choosers on scripted logits: exact log-probabilities, and no second graph where none is needed."""

from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxport.errors import BundleError, OnnxportError
from onnxport.graph.search_graphs import search_graphs
from onnxport.runtime.decode.constraints import NO_PAIRS, Rules
from onnxport.runtime.decode.state import BestTokens
from onnxport.runtime.decode.token_selection import BeamSelector, Draw, TokenSelector
from onnxport.runtime.options import Sampling
from onnxport.runtime.sessions import CPU, value_of
from support.plain_numpy import log_softmax

VOCABULARY, ROWS = 50, 4
SESSIONS = {name: onnxruntime.InferenceSession(data) for name, data in search_graphs(0, VOCABULARY).items()}


class Engine:
    """Search sessions only; remembers which were asked for."""

    device, vocab_size = CPU, VOCABULARY

    def __init__(self, **others: Any) -> None:
        self.used: list[str] = []
        self.sessions = SESSIONS | others

    def search(self, name: str) -> Any:
        self.used.append(name)
        return self.sessions[name]


class Scripted:
    """Logits as given, and their best tokens as a decoder gives them."""

    def __init__(self, scores: np.ndarray, beams: int = 1) -> None:
        self.scores, self.beams = scores, beams
        self.ids, self.logits = np.zeros((len(scores), 1), np.int64), value_of(scores)

    def request_top(self, count: int, suppressed: np.ndarray) -> None:
        inputs = {"logits": self.scores, "candidates": np.array([count]), "suppressed": suppressed}
        self.best = BestTokens(*SESSIONS["best"].run(["token", "logprob", "kept"], inputs))


class Selector:
    """A selector that prepares and selects in one go."""

    def __init__(self, made: Any, *settings: Any) -> None:
        self.made, self.settings = made, settings

    def select(self, rule: Rules) -> Any:
        self.made.prepare(rule, *self.settings)
        return self.made.select(rule, *self.settings)


def rules(*suppressed: int, banned: Any = None, forced: Any = None, renormalize: bool = True) -> Rules:
    pairs = NO_PAIRS if banned is None else np.array(banned, np.int64)
    return Rules(np.array(suppressed, np.int64), frozenset(suppressed), pairs, forced or {}, None, 1.0, renormalize)


def logits(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY)) * 3).astype(np.float32)


def left(scores: np.ndarray, rule: Rules) -> np.ndarray:
    """Log-probabilities of what may come, -inf elsewhere."""
    out = log_softmax(scores)
    out[:, rule.suppressed] = -np.inf
    out[rule.banned[:, 0], rule.banned[:, 1]] = -np.inf
    return out - np.log(np.exp(out).sum(-1, keepdims=True)) if rule.renormalize else out


def selector(engine: Engine, scores: np.ndarray, draw: Draw | None = None) -> Selector:
    return Selector(TokenSelector(engine, Scripted(scores)), [draw] * ROWS)  # type: ignore[arg-type]


def beams(engine: Engine, scores: np.ndarray, count: int, before: Any = ((0, 0), (0, 0))) -> Selector:
    made = BeamSelector(engine, Scripted(scores, 2), 2)  # type: ignore[arg-type]
    made.scores[:] = before
    return Selector(made, count)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.999999])
def test_greedy_log_probabilities(renormalize: bool, share: float) -> None:
    scores, rule = logits(), rules(7, 30, renormalize=renormalize)
    scores[1, 7] = scores[1].max() + np.log(share / (1 - share)) + 3  # this row wants what may not come
    engine = Engine()
    tokens, logprobs = selector(engine, scores).select(rule)
    expected = left(scores, rule)
    assert tokens == expected.argmax(1).tolist()
    assert logprobs == pytest.approx(expected.max(1), abs=1e-5)
    assert "process" in engine.used


def test_a_usual_step_runs_no_graph() -> None:
    scores, rule = logits(), rules(7, 30, forced={2: (5,)})
    scores[:, [7, 30]] = -1.0
    engine = Engine()
    made = selector(engine, scores)
    for _ in range(3):
        tokens, logprobs = made.select(rule)
    assert engine.used == []
    expected = left(scores, rule)
    assert tokens[2] == 5
    assert logprobs[2] == 0
    assert [tokens[i] for i in (0, 1, 3)] == expected.argmax(1)[[0, 1, 3]].tolist()
    assert [logprobs[i] for i in (0, 1, 3)] == pytest.approx(expected.max(1)[[0, 1, 3]], abs=1e-5)


@pytest.mark.parametrize("banned", [None, [[0, 3], [3, 12]]])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_beam_scores(wanted: bool, renormalize: bool, banned: Any) -> None:
    scores, rule = logits(), rules(7, 30, banned=banned, renormalize=renormalize)
    scores[1, 7] = 18.0 if wanted else -1.0
    engine = Engine()
    before = np.array([[-1.0, -1.5], [-0.5, -2.0]], np.float32)
    found = beams(engine, scores, 8, before).select(rule)
    total = (left(scores, rule).reshape(2, 2, VOCABULARY) + before[:, :, None]).reshape(2, -1)
    order = np.argsort(-total, axis=1)[:, :8]
    assert [[beam * VOCABULARY + token for _, beam, token in one] for one in found] == order.tolist()
    np.testing.assert_allclose([[score for score, _, _ in one] for one in found], np.take_along_axis(total, order, 1), atol=1e-5)
    assert ("process" in engine.used) == (banned is not None or (wanted and renormalize))


def test_forced_beams_run_no_graph() -> None:
    engine = Engine()
    found = beams(engine, logits(), 3, [[-1.0, -1.5], [-2.5, -2.0]]).select(rules(forced=dict.fromkeys(range(4), (3, 8))))
    assert engine.used == []
    half = pytest.approx(np.log(0.5))
    assert [[(beam, token) for _, beam, token in one] for one in found] == [[(0, 3), (0, 8), (1, 3)], [(1, 3), (1, 8), (0, 3)]]
    assert [found[0][0][0] + 1, found[1][2][0] + 2.5] == [half, half]


@pytest.mark.parametrize("rule", [rules(renormalize=False), rules(7, renormalize=False), rules(7, banned=[[1, 3]])])
def test_each_row_is_drawn_by_its_own_settings(rule: Rules) -> None:
    """Neighbours that are alike together, and every row as in a batch of its like."""
    scores, warm, sharp = logits(), Sampling(3.0), Sampling(0.7, 5, 0.9)
    draws: list[Draw | None] = [(warm, 0.9), None, (sharp, 0.6), (sharp, 0.3)]
    mixed = Selector(TokenSelector(Engine(), Scripted(scores)), draws).select(rule)  # type: ignore[arg-type]
    for row, draw in enumerate(draws):
        alike = selector(Engine(), scores, draw).select(rule)
        assert mixed[0][row] == alike[0][row]
        assert mixed[1][row] == pytest.approx(alike[1][row], abs=1e-5)


def test_when_nothing_may_come() -> None:
    every = rules(*range(VOCABULARY), renormalize=False)
    with pytest.raises(OnnxportError, match="no token may come"):
        selector(Engine(), logits()).select(every)
    with pytest.raises(OnnxportError, match="no token may come"):
        beams(Engine(), logits(), 4).select(every)


def test_search_graphs_of_another_version_are_told() -> None:
    sampling = Sampling(temperature=2.0), 0.5
    with pytest.raises(BundleError, match="search graph 'sample_full' reads .*, expected logits, .*; export the model again"):
        selector(Engine(sample_full=SESSIONS["best"]), logits(), sampling).select(rules())
