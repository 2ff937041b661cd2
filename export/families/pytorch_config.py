"""The config.json of our folder for PyTorch's own Transformer, key by key."""

import math
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.families.checks import DEPTH, LENGTH, ROWS, WIDTH, Key, dropout, integer, number, one_of, optional, read_keys, text

TASKS = ("translation", "summarization", "text2text")

KEYS: dict[str, Key] = {
    "architecture": Key(text),
    "d_model": Key(integer(1, WIDTH)),
    "nhead": Key(integer(1, WIDTH)),
    "num_encoder_layers": Key(integer(1, DEPTH)),
    "num_decoder_layers": Key(integer(1, DEPTH)),
    "dim_feedforward": Key(integer(1, 16 * WIDTH)),
    "activation": Key(one_of("relu", "gelu"), "relu"),
    "norm_first": Key(one_of(True, False), False),
    "layer_norm_eps": Key(number(0), 1e-5),
    "bias": Key(one_of(True, False), True),
    "batch_first": Key(one_of(True, False), True),  # an order of axes inside PyTorch: the weights are the same
    "dropout": Key(dropout, 0.1),  # nothing in eval mode
    "source_vocab_size": Key(integer(1, ROWS)),
    "target_vocab_size": Key(integer(1, ROWS)),
    "positions": Key(one_of("sinusoidal", "learned", "none")),
    "embedding_scale": Key(number(-math.inf), 1.0),
    "tie_embeddings": Key(one_of(True, False, "target"), False),
    "max_length": Key(optional(integer(1, LENGTH)), None),
    "pad_id": Key(integer(0, ROWS)),
    "bos_id": Key(integer(0, ROWS)),
    "eos_id": Key(integer(0, ROWS)),
    "decoder_start_id": Key(optional(integer(0, ROWS)), None),
    "task": Key(optional(one_of(*TASKS)), None),
    "name": Key(optional(text), None),
}


def read_config(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Every key with its default filled in; CheckpointError tells all problems at once."""
    config, usable, problems = read_keys(given, KEYS)
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
