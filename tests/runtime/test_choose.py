"""The choosers on scripted logits: exact log-probabilities, and no second graph where none is needed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxport.errors import BundleError, OnnxportError
from onnxport.quantize.selection import search_graphs
from onnxport.runtime.choose import BeamChooser, TokenChooser
from onnxport.runtime.constraints import NO_PAIRS, Rules
from onnxport.runtime.options import Options, SearchConfig
from onnxport.runtime.session import value_of

from .plain import log_softmax

VOCABULARY, ROWS = 50, 4
SESSIONS = {name: onnxruntime.InferenceSession(data) for name, data in search_graphs(0, VOCABULARY).items()}


class Engine:
    """Search sessions only; remembers which were asked for."""

    device, vocab_size = "cpu", VOCABULARY

    def __init__(self, **others: Any) -> None:
        self.used: list[str] = []
        self.sessions = SESSIONS | others

    def search(self, name: str) -> Any:
        self.used.append(name)
        return self.sessions[name]


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


def chooser(engine: Engine, scores: np.ndarray) -> TokenChooser:
    ids = np.zeros((len(scores), 1), np.int64)
    return TokenChooser(engine, value_of(scores), ids, Options().resolve(SearchConfig()))  # type: ignore[arg-type]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.999999])
def test_greedy_log_probabilities(renormalize: bool, share: float) -> None:
    scores, rule = logits(), rules(7, 30, renormalize=renormalize)
    scores[1, 7] = scores[1].max() + np.log(share / (1 - share)) + 3  # this row wants what may not come
    engine = Engine()
    tokens, logprobs = chooser(engine, scores).choose(rule)
    expected = left(scores, rule)
    assert tokens == expected.argmax(1).tolist()
    assert logprobs == pytest.approx(expected.max(1), abs=1e-5)
    assert "process" in engine.used


def test_a_usual_step_runs_one_graph() -> None:
    scores, rule = logits(), rules(7, 30, forced={2: (5,)})
    scores[:, [7, 30]] = -1.0
    engine = Engine()
    made = chooser(engine, scores)
    for _ in range(3):
        tokens, logprobs = made.choose(rule)
    assert engine.used == ["greedy"]
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
    made = BeamChooser(engine, value_of(scores), 2, 2)  # type: ignore[arg-type]
    made.scores[:] = [[-1.0, -1.5], [-0.5, -2.0]]
    found = made.choose(rule, 8)
    total = (left(scores, rule).reshape(2, 2, VOCABULARY) + made.scores[:, :, None]).reshape(2, -1)
    order = np.argsort(-total, axis=1)[:, :8]
    assert [[beam * VOCABULARY + token for _, beam, token in one] for one in found] == order.tolist()
    np.testing.assert_allclose([[score for score, _, _ in one] for one in found], np.take_along_axis(total, order, 1), atol=1e-5)
    assert ("process" in engine.used) == (banned is not None or (wanted and renormalize))


def test_forced_beams_run_no_graph() -> None:
    beam = SESSIONS["beam"]
    unable = SimpleNamespace(io_binding=beam.io_binding, get_inputs=beam.get_inputs)  # to run it would be an error
    made = BeamChooser(Engine(beam=unable), value_of(logits()), 2, 2)  # type: ignore[arg-type]
    made.scores[:] = [[-1.0, -1.5], [-2.5, -2.0]]
    found = made.choose(rules(forced=dict.fromkeys(range(4), (3, 8))), 3)
    half = pytest.approx(np.log(0.5))
    assert [[(beam, token) for _, beam, token in one] for one in found] == [[(0, 3), (0, 8), (1, 3)], [(1, 3), (1, 8), (0, 3)]]
    assert [found[0][0][0] + 1, found[1][2][0] + 2.5] == [half, half]


def test_when_nothing_may_come() -> None:
    every = rules(*range(VOCABULARY), renormalize=False)
    with pytest.raises(OnnxportError, match="no token may come"):
        chooser(Engine(), logits()).choose(every)
    with pytest.raises(OnnxportError, match="no token may come"):
        BeamChooser(Engine(), value_of(logits()), 2, 2).choose(every, 4)  # type: ignore[arg-type]


def test_search_graphs_of_another_version_are_told() -> None:
    with pytest.raises(BundleError, match="search graph 'greedy' reads .*, expected logits, suppressed; export the model again"):
        chooser(Engine(greedy=SESSIONS["beam"]), logits())
