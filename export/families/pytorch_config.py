"""The config.json of our folder for PyTorch's own Transformer, key by key."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxport.errors import CheckpointError

LARGEST = 3.4e38  # of float32, about
WIDTH, DEPTH, LENGTH, ROWS = 65536, 1024, 1_000_000, 100_000_000  # no model is larger; beyond, building one would not end
TASKS = ("translation", "summarization", "text2text")


def _int(low: int, high: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if type(value) is int and low <= value <= high else f"an integer from {low} to {high}"

    return check


def _number(low: float) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fits = type(value) in (int, float) and abs(value) <= LARGEST and value > low  # NaN is none of it
        return None if fits else f"a number above {low:g}" if math.isfinite(low) else "a number of float32"

    return check


def _one_of(*values: Any) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        known = any(type(value) is type(one) and value == one for one in values)
        return None if known else "one of " + ", ".join(map(repr, values))

    return check


def _optional(inner: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else inner(value)


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _dropout(value: Any) -> str | None:
    return None if type(value) in (int, float) and 0 <= value <= 1 else "a number from 0 to 1"


@dataclass(frozen=True)
class Key:
    """How a key is checked; `...` as the default means it is needed."""

    check: Callable[[Any], str | None]
    default: Any = ...


KEYS: dict[str, Key] = {
    "architecture": Key(_text),
    "d_model": Key(_int(1, WIDTH)),
    "nhead": Key(_int(1, WIDTH)),
    "num_encoder_layers": Key(_int(1, DEPTH)),
    "num_decoder_layers": Key(_int(1, DEPTH)),
    "dim_feedforward": Key(_int(1, 16 * WIDTH)),
    "activation": Key(_one_of("relu", "gelu"), "relu"),
    "norm_first": Key(_one_of(True, False), False),
    "layer_norm_eps": Key(_number(0), 1e-5),
    "bias": Key(_one_of(True, False), True),
    "batch_first": Key(_one_of(True, False), True),  # an order of axes inside PyTorch: the weights are the same
    "dropout": Key(_dropout, 0.1),  # nothing in eval mode
    "source_vocab_size": Key(_int(1, ROWS)),
    "target_vocab_size": Key(_int(1, ROWS)),
    "positions": Key(_one_of("sinusoidal", "learned", "none")),
    "embedding_scale": Key(_number(-math.inf), 1.0),
    "tie_embeddings": Key(_one_of(True, False, "target"), False),
    "max_length": Key(_optional(_int(1, LENGTH)), None),
    "pad_id": Key(_int(0, ROWS)),
    "bos_id": Key(_int(0, ROWS)),
    "eos_id": Key(_int(0, ROWS)),
    "decoder_start_id": Key(_optional(_int(0, ROWS)), None),
    "task": Key(_optional(_one_of(*TASKS)), None),
    "name": Key(_optional(_text), None),
}


def read_config(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Every key with its default filled in; CheckpointError tells all problems at once."""
    problems = [f"{name} is missing" for name, key in KEYS.items() if key.default is ... and name not in given]
    problems += [f"{name} is not a key of this architecture" for name in given if name not in KEYS]
    wrong = set()
    for name, value in given.items():
        if name in KEYS and (expected := KEYS[name].check(value)):
            wrong.add(name)
            problems.append(f"{name} is {value!r:.60}, expected {expected}")
    config = {name: given.get(name, key.default) for name, key in KEYS.items()}
    usable = {name for name in config if config[name] is not ... and name not in wrong}
    problems += [text for names, text in _relations(config, usable) if names <= usable]
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    return config


def _relations(config: dict[str, Any], usable: set[str]) -> list[tuple[set[str], str]]:
    """What is wrong between keys: (the keys it takes, what to say)."""
    found = []
    if {"d_model", "nhead"} <= usable and config["d_model"] % config["nhead"]:
        found.append(({"d_model", "nhead"}, f"d_model {config['d_model']} does not divide by nhead {config['nhead']}"))
    if {"source_vocab_size", "target_vocab_size", "tie_embeddings"} <= usable and config["tie_embeddings"] is True:
        sizes = config["source_vocab_size"], config["target_vocab_size"]
        if sizes[0] != sizes[1]:
            found.append((set(), f"tie_embeddings is true but source_vocab_size is {sizes[0]} and target_vocab_size {sizes[1]}"))
    if {"positions", "max_length"} <= usable and config["positions"] != "none" and config["max_length"] is None:
        found.append((set(), f"max_length is missing, which {config['positions']} positions need"))
    for name in ("pad_id", "bos_id", "eos_id", "decoder_start_id"):
        for side in ("target_vocab_size", "source_vocab_size") if name == "pad_id" else ("target_vocab_size",):
            if {name, side} <= usable and config[name] is not None and config[name] >= config[side]:
                found.append((set(), f"{name} is {config[name]} but {side} is {config[side]}"))
    return found
