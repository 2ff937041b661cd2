"""Sides without a model, for the protocol and the comparison: each answers by a rule."""

import os
import signal
import sys
import time
from typing import Any

from onnxport.errors import TextError


class Echo:
    """Answers a text with its words reversed; ids are word lengths. `wrong`: every so many answers differ in their last word."""

    imports = ("colorsys",)

    def __init__(self, wrong: int = 0, delay: float = 0.0, size_bytes: int = 1000, loud: bool = False) -> None:
        self.wrong, self.delay, self.size_bytes, self.loud = wrong, delay, size_bytes, loud

    def load(self) -> None:
        if self.loud:
            print("a library's banner on standard output")
            os.system("echo a child process too")

    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "size_bytes": self.size_bytes, "versions": {"fake": "1.0"}}

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        time.sleep(self.delay * len(inputs))
        found = []
        for given in inputs:
            words = given.split()[::-1] if isinstance(given, str) else [str(i) for i in given[::-1]]
            if self.wrong and len(" ".join(words)) % self.wrong == 0:
                words[-1] = "wrong"
            words = (words * 64)[: options["min_new_tokens"]] if "min_new_tokens" in options else words
            found.append({"text": " ".join(words), "tokens": [len(word) for word in words], "score": float("nan")})
        return found

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {name: array * 2 for name, array in inputs.items()}

    def parity(self) -> dict[str, Any]:
        return {"max_abs_diff": 1e-6 * (1 + self.wrong), "finite": True}


class Guessing(Echo):
    """Two tokens a pass, for which two are guessed and one comes true."""

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        return [one | {"made": 2, "passes": 1, "guessed": 2, "accepted": 1} for one in super().generate(inputs, **options)]


class Faulty(Echo):
    """Fails in the way that the first input names."""

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        if "refuse" in inputs:
            raise TextError("the text is too long: 9 tokens, at most 8; shorten it")
        match inputs[0]:
            case "raise":
                raise RuntimeError("first line\nsecond line")
            case "die":
                print("last words", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(60)
        return super().generate(inputs, **options)
