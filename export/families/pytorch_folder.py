"""Our folder for PyTorch's own Transformer: config.json, weights under PyTorch's names, tokenizers."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError
from onnxport.export.adapters import Seq2Seq
from onnxport.export.families.pytorch_config import read_config
from onnxport.export.prepare import without_values
from onnxport.export.source import Source, file_hash, tokenizer_bytes, vocabulary_problem
from onnxport.export.weights import read_weights

SETTINGS = (
    "d_model",
    "nhead",
    "num_encoder_layers",
    "num_decoder_layers",
    "dim_feedforward",
    "activation",
    "norm_first",
    "layer_norm_eps",
    "bias",
)


def sinusoidal(length: int, size: int) -> Tensor:
    """The table [length, size] of "Attention Is All You Need", section 3.5: sines in even columns, cosines in odd ones."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-math.log(10000.0) / size))
    table = torch.zeros(length, size)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : size // 2]
    return table


def read(folder: Path, given: dict[str, Any], allow_pickle: bool) -> Source:
    """The folder as a Seq2Seq around torch.nn.Transformer. CheckpointError tells all gaps of config, weights and tokenizers at once."""
    config = read_config(given, str(folder / "config.json"))
    files = read_weights(folder, allow_pickle)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on its own fused path
        transformer = nn.Transformer(**{name: config[name] for name in SETTINGS}, batch_first=True, dropout=0.0)
    expected = _expected_shapes(transformer, config)
    optional = {"head.bias": [config["target_vocab_size"]]}
    if config["positions"] == "sinusoidal":
        optional["positions.weight"] = [config["max_length"], config["d_model"]]
    problems = weight_problems(files.tensors, expected, optional)
    tokenizers, tokenizer_files, more = _tokenizers(folder, config)
    if problems := [*problems, *more]:
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


def weight_problems(tensors: dict[str, Tensor], expected: dict[str, list[int]], optional: dict[str, list[int]]) -> list[str]:
    """Every disagreement between tensors found and shapes expected."""
    known = expected | optional
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing tensors: {', '.join(missing)}")
    if extra := sorted(name for name in tensors if name not in known):
        problems.append(f"unexpected tensors: {', '.join(extra)}")
    for name, tensor in tensors.items():
        if name not in known:
            continue
        if list(tensor.shape) != known[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {known[name]}")
        if unusable := without_values(tensor):
            problems.append(f"{name} {unusable[0]}")
            continue
        if not tensor.is_floating_point():
            problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected a floating type")
        elif not torch.isfinite(tensor.float()).all():
            problems.append(f"{name} holds NaN or infinity")
    return problems


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
