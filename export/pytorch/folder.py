"""Folders of torch.nn.Transformer in the layout of onnxport: config.json, weights and tokenizers."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError
from onnxport.export.adapters import Seq2Seq
from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, dropout, integer, number, one_of, optional, read_keys, text
from onnxport.export.source import Source
from onnxport.export.tokenizers.folder import tokenizer_bytes, vocabulary_problem
from onnxport.export.weights import file_hash, read_weights, weight_problems

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
SETTINGS = frozenset(  # arguments of torch.nn.Transformer
    "d_model nhead num_encoder_layers num_decoder_layers dim_feedforward activation norm_first layer_norm_eps bias".split()
)


def read(folder: Path, values: dict[str, Any], allow_pickle: bool) -> Source:
    """The folder as a Seq2Seq around torch.nn.Transformer. CheckpointError names all gaps of config, weights and tokenizers at once."""
    config = read_config(values, str(folder / "config.json"))
    files = read_weights(folder, allow_pickle)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on its own fused path
        transformer = nn.Transformer(**{name: config[name] for name in SETTINGS}, batch_first=True, dropout=0.0)
    expected = _expected_shapes(transformer, config)
    optional = {"head.bias": [config["target_vocab_size"]]}
    if config["positions"] == "sinusoidal":
        optional["positions.weight"] = [config["max_length"], config["d_model"]]
    problems = weight_problems(files.tensors, expected, optional)
    tokenizers, tokenizer_files, vocabulary_problems = _tokenizers(folder, config)
    if problems := [*problems, *vocabulary_problems]:
        raise CheckpointError(f"{folder} does not agree with its config.json: {'; '.join(problems)}")
    tensors = {name: tensor.float() for name, tensor in files.tensors.items()}
    state = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    transformer.load_state_dict(state, assign=True)
    adapter = _adapter(transformer, tensors, config)
    hashes = {path.name: file_hash(path) for path in sorted([folder / "config.json", *files.paths, *tokenizer_files])}
    settings = {
        name: value for name, value in config.items() if name not in ("name", "task", "dropout", "batch_first") and value is not None
    }
    name = config["name"] or folder.resolve().name
    return Source(adapter, name, config["architecture"], config["task"], hashes, tokenizers, settings, owned=True)


def read_config(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Every key with its default filled in; CheckpointError names all problems at once."""
    config, usable, problems = read_keys(values, KEYS)
    problems += [text for names, text in _relations(config, usable) if names <= usable]
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    return config


def _relations(config: dict[str, Any], usable: set[str]) -> list[tuple[set[str], str]]:
    """What is wrong between keys: (the keys that must be usable, the message)."""
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


def _expected_shapes(transformer: nn.Transformer, config: dict[str, Any]) -> dict[str, list[int]]:
    shapes = {f"transformer.{name}": list(value.shape) for name, value in transformer.state_dict().items()}
    width, source, target = config["d_model"], config["source_vocab_size"], config["target_vocab_size"]
    shapes["source_embedding.weight"] = [source, width]
    if config["tie_embeddings"] is not True:
        shapes["target_embedding.weight"] = [target, width]
    if config["tie_embeddings"] is False:
        shapes["head.weight"] = [target, width]
    if config["positions"] == "learned":
        shapes["positions.weight"] = [config["max_length"], width]
    return shapes


def _tokenizers(folder: Path, config: dict[str, Any]) -> tuple[dict[str, bytes], list[Path], list[str]]:
    """Bytes by side, the files they came from, and why a vocabulary does not fit."""
    shared = folder / "tokenizer.json"
    found = {side: path if (path := folder / f"{side}_tokenizer.json").is_file() else shared for side in ("source", "target")}
    found = {side: path for side, path in found.items() if path.is_file()}
    result = {side: tokenizer_bytes(path) for side, path in found.items()}
    problems = [problem for side, data in result.items() if (problem := vocabulary_problem(data, config[f"{side}_vocab_size"], side))]
    return result, sorted(set(found.values())), problems


def _adapter(transformer: nn.Transformer, tensors: dict[str, Tensor], config: dict[str, Any]) -> Seq2Seq:
    source = nn.Embedding.from_pretrained(tensors["source_embedding.weight"])
    target = nn.Embedding.from_pretrained(tensors["target_embedding.weight"]) if "target_embedding.weight" in tensors else source
    head = None
    if "head.weight" in tensors or "head.bias" in tensors:
        head = nn.Linear(1, 1, bias="head.bias" in tensors, device="meta")
        head.out_features, head.in_features = target.weight.shape
        head.weight = nn.Parameter(tensors["head.weight"], False) if "head.weight" in tensors else target.weight
        if "head.bias" in tensors:
            head.bias = nn.Parameter(tensors["head.bias"], False)
    positions = tensors.get("positions.weight")
    if positions is None and config["positions"] == "sinusoidal":
        positions = sinusoidal(config["max_length"], config["d_model"])
    return Seq2Seq(
        transformer=transformer,
        source_embedding=source,
        target_embedding=target,
        head=head,
        positions=positions,
        embedding_scale=config["embedding_scale"],
        pad_id=config["pad_id"],
        bos_id=config["bos_id"],
        eos_id=config["eos_id"],
        decoder_start_id=config["decoder_start_id"],
        max_length=config["max_length"],
    )


def sinusoidal(length: int, size: int) -> Tensor:
    """The table [length, size] of "Attention Is All You Need", section 3.5: sines in even columns, cosines in odd ones."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-math.log(10000.0) / size))
    table = torch.zeros(length, size)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : size // 2]
    return table
