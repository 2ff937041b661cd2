"""A side that gives every token the same probability in every place, whatever the input."""

import math
from typing import Any


class Scoring:
    """probabilities: token id (a text, as JSON has it) -> probability; None is a side that cannot score."""

    imports = ()

    def __init__(self, probabilities: dict[str, float] | None = None) -> None:
        self.known = {int(token): p for token, p in (probabilities or {}).items()}
        if probabilities is not None:
            self.score = self._score

    def load(self) -> None:
        pass

    def _score(self, inputs: list[Any], top: int = 0) -> list[dict[str, Any]]:
        best = sorted(self.known, key=lambda token: -self.known[token])[:top]
        return [
            {
                "tokens": target,
                "token_logprobs": [math.log(self.known.get(token, 1e-3)) for token in target],
                "top_ids": [best] * len(target),
                "top_logprobs": [[math.log(self.known[token]) for token in best]] * len(target),
            }
            for _, target in inputs
        ]
