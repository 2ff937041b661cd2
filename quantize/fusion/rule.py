"""Rewrite rules: what a rule is, how rules are applied to a graph, and the outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from onnxport.graph.edit import Miss, is_op, remove_dead


class Rule(ABC):
    """One rewrite. `pattern` collects the nodes around an anchor, `check` compares shapes and attributes, `rewrite` changes the graph.

    `pattern` and `check` raise `Miss` and leave the graph as it is; a rule keeps no state between its methods.
    """

    name: ClassVar[str]
    anchor: ClassVar[str]  # op type at which the pattern is looked for
    domain: ClassVar[str] = ""  # of the anchor
    since: ClassVar[int] = 0  # the first opset that has what the rule makes
    kernel: ClassVar[str]  # op type of the node that stands for one rewrite in the finished graph; "" if the rule only removes nodes

    @abstractmethod
    def pattern(self, node: ir.Node) -> Any:
        """The nodes and values around the anchor `node`, as the other two methods take them. Raises `Miss`."""

    def check(self, graph: ir.Graph, match: Any) -> None:  # noqa: B027 - most rules that only remove nodes have nothing more to check
        """Raises `Miss` where shapes or attributes of what was matched do not fit the kernel."""

    @abstractmethod
    def rewrite(self, graph: ir.Graph, match: Any) -> None:
        """Puts the kernel in the place of what was matched; edits `graph`."""


@dataclass
class Outcome:
    """How often each rule was applied, and why it was not where its anchor stands."""

    counts: dict[str, int] = field(default_factory=dict)
    misses: dict[str, list[str]] = field(default_factory=dict)


def apply(graph: ir.Graph, rules: Iterable[Rule]) -> Outcome:
    """Apply rules in order, each once over all nodes, and remove what they leave unread; edits `graph`."""
    outcome = Outcome()
    for rule in rules:
        if graph.opset_imports.get("", rule.since) < rule.since:
            continue
        for node in list(graph):
            if node.graph is not graph or not is_op(node, rule.anchor, rule.domain):
                continue
            try:
                match = rule.pattern(node)
                rule.check(graph, match)
            except Miss as reason:
                outcome.misses.setdefault(rule.name, []).append(f"{node.name or node.outputs[0].name}: {reason}")
                continue
            rule.rewrite(graph, match)
            outcome.counts[rule.name] = outcome.counts.get(rule.name, 0) + 1
        remove_dead(graph)  # what a rule replaced must not be found by the next
    return outcome
