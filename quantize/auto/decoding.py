"""What a search for a language model's plan knows: how its recipe carries a plan out, and what each kind of weight loses alone.

Layers of a language model are many and alike, so weights of one kind in a fifth of the layers are one group. What a group loses shows on
calibration texts: one graph holds every product and every mixture twice, in float32 and by one scheme, with a switch for each group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxport.graph.session import Runner, opened
from onnxport.quantize.calibration_inputs import places
from onnxport.quantize.modules import Group
from onnxport.quantize.plan import FP32, Plan
from onnxport.quantize.recipe import Solved
from onnxport.quantize.safeguards.sensitive_weights import ROLE, SWITCHES, Measure, kinds, logits_alone, twins
from onnxport.quantize.schemes.apply import solve
from onnxport.quantize.schemes.linear import Lookup, lookups
from onnxport.quantize.schemes.mixtures import Product, products
from onnxport.runtime.bundle.interface import INPUT_IDS, LOGITS, prefill
from onnxport.runtime.bundle.kept import Kept, log_softmax

Feed = Mapping[str, np.ndarray]
TEXTS, TOKENS = 6, 96  # that show what a group loses: sums over groups need no more than two digits


class KindLosses:
    """The divergence that each group's scheme makes alone, in nats a token. decoder: float32, fused; feeds: calibration texts, whole.

    A context manager: the graph of the scheme that was asked for last stays open.
    """

    def __init__(self, decoder: ir.Model, feeds: Sequence[Feed], solved: Solved) -> None:
        self._decoder, self._all, self._solved = decoder, feeds, solved
        self._feeds = [_beginning(feeds[i]) for i in places(len(feeds), TEXTS)]
        self._stack = ExitStack()
        self._scheme: str | None = None

    def __enter__(self) -> KindLosses:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def loss(self, group: Group, scheme: str) -> float:
        """The loss of the group's products; 0 of a table that nothing multiplies by. inf where an answer is not finite."""
        if not group.uses:
            return 0.0
        if scheme != self._scheme:
            self._open(scheme)
        on = np.array([not group.parameters.isdisjoint(parameters) for parameters in self._groups])
        divergences = [
            kept.divergence(log_softmax(found[LOGITS][:-1]))
            for kept, found in zip(self._expected, self._runner.run({**feed, SWITCHES: on} for feed in self._feeds), strict=True)
        ]
        found = float(np.concatenate(divergences).mean())
        return max(found, 0.0) if np.isfinite(found) else float("inf")

    def _open(self, scheme: str) -> None:
        self._stack.close()
        plan = Plan({"*": scheme})
        scaled = self._solved.scales.scaled(plan)
        solve({ROLE: scaled}, plan, {ROLE: self._all}, self._solved.weights)
        whole = logits_alone(scaled)
        group_of = kinds([product.name for product in products(whole.graph)])
        both, groups = twins(whole, plan, Measure(group_of.__getitem__, lambda *_: FP32.name, lambda *_: 0.0), self._solved.weights)
        self._groups = [set(group.nearer) for group in groups.values()]
        self._runner: Runner = self._stack.enter_context(opened({ROLE: both}))[ROLE]
        self._scheme = scheme

    @cached_property
    def _expected(self) -> list[Kept]:
        """What float32 makes of the texts."""
        with opened({ROLE: logits_alone(self._decoder)}) as runners:
            return [
                Kept.of(found[LOGITS][:-1], feed[INPUT_IDS][0, 1:])
                for feed, found in zip(self._feeds, runners[ROLE].run(self._feeds), strict=True)
            ]


def kind_of(decoder: ir.Model) -> Callable[[Product | Lookup], str]:
    """The group that what a language model computes with weights is in."""
    found = kinds([part.name for part in (*products(decoder.graph), *lookups(decoder.graph))])
    return lambda part: found[part.name]


def _beginning(feed: Feed) -> Feed:
    """The first tokens of a text."""
    return {**feed, **prefill(feed[INPUT_IDS][:, :TOKENS])}
