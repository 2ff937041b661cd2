"""Asks a pipeline of transformers 4, which stands first on PYTHONPATH: a request as JSON on standard input, answers as JSON."""

from __future__ import annotations

import json
import sys
import warnings

import transformers

if __name__ == "__main__":
    assert transformers.__version__.startswith("4."), transformers.__version__
    warnings.simplefilter("ignore")
    asked = json.load(sys.stdin)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(asked["folder"])  # its class has another name in version 5
    pipeline = transformers.pipeline(asked["task"], model=asked["folder"], tokenizer=tokenizer, device="cpu", **asked["options"])
    print(json.dumps([pipeline(*args, **keywords) for args, keywords in asked["calls"]]))
