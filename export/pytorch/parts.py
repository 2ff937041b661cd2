"""An adapter's parts, checked against each other and in one form: modules in float32 on the CPU, positions as a plain table."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError
from onnxport.export.adapters import CausalLM, Encoder, Seq2Seq
from onnxport.export.canonical.load_weights import same_storage
from onnxport.export.pytorch.transformer import check_exact
from onnxport.export.user_code import on_cpu_in_float32
from onnxport.export.weights import is_finite, without_values

MODULES = {
    Seq2Seq: {"transformer": nn.Transformer, "source_embedding": nn.Embedding, "target_embedding": nn.Embedding, "head": nn.Linear},
    CausalLM: {"transformer": nn.TransformerEncoder, "embedding": nn.Embedding, "head": nn.Linear},
    Encoder: {"transformer": nn.TransformerEncoder, "embedding": nn.Embedding, "head": nn.Linear},
}

LONGEST = 1_000_000  # positions


@dataclass(frozen=True)
class Parts:
    """An adapter's parts, checked.

    target_embedding: the same as source_embedding where there is one table. head: None where the output shares that table. positions:
    [rows, d] or None. max_length: None means no bound.
    """

    transformer: nn.Transformer | nn.TransformerEncoder
    source_embedding: nn.Embedding
    target_embedding: nn.Embedding
    head: nn.Linear | None
    positions: Tensor | None
    scale: float
    max_length: int | None
    ids: dict[str, int]


def prepare(adapter: Seq2Seq | CausalLM | Encoder) -> Parts:
    """CheckpointError, with all problems at once, when the parts do not fit together."""
    wanted = MODULES[type(adapter)]
    modules = {name: getattr(adapter, name) for name in wanted}
    if isinstance(adapter, Seq2Seq) and modules["target_embedding"] is None:
        modules["target_embedding"] = modules["source_embedding"]
    for name in wanted:
        if modules[name] is None and name != "head":
            raise CheckpointError(f"{type(adapter).__name__} needs {name}, a torch.nn.{wanted[name].__name__}")
    check_exact(modules, wanted)
    positions, problems = _positions(adapter.positions)
    hidden = _hidden(modules["transformer"])
    problems += _width_problems(modules, positions, hidden, labels=isinstance(adapter, Encoder))
    problems += _id_problems(adapter, modules)
    if isinstance(adapter, Encoder) and adapter.pooling not in (None, "first", "mean"):
        problems.append(f"pooling is {adapter.pooling!r}; known are None, 'first', 'mean'")
    scale = _scale(adapter.embedding_scale)
    if scale is None:
        problems.append(f"embedding_scale is {adapter.embedding_scale!r:.40}, not a number of float32")
    max_length, length_problems = _max_length(adapter.max_length, positions)
    problems += length_problems
    state = modules | {"positions": positions}
    problems += [f"{name} {text}" for name, part in state.items() if part is not None for text in without_values(part)]
    if scale is None or problems:
        raise CheckpointError(f"the parts of this {type(adapter).__name__} do not fit together: {'; '.join(problems)}")
    copied = on_cpu_in_float32(state)
    positions = copied.pop("positions")
    problems = [f"{name}.{key} holds NaN or infinity" for name, part in copied.items() if part is not None for key in _broken(part)]
    if problems:
        raise CheckpointError(f"weights that cannot be right: {'; '.join(problems)}")
    ids = {name: int(getattr(adapter, name)) for name in ("pad_id", "bos_id", "eos_id") if hasattr(adapter, name)}
    if not isinstance(adapter, Encoder):
        start = getattr(adapter, "decoder_start_id", None)
        ids["decoder_start_id"] = ids["bos_id"] if start is None else int(start)
    return Parts(
        transformer=copied["transformer"],
        source_embedding=copied["source_embedding" if "source_embedding" in copied else "embedding"],
        target_embedding=copied["target_embedding" if "target_embedding" in copied else "embedding"],
        head=copied["head"],
        positions=None if positions is None else positions[:max_length].contiguous(),
        scale=scale,
        max_length=max_length,
        ids=ids,
    )


def _scale(value: Any) -> float | None:
    """`value` as a number, where float32 can hold it; a tensor without axes counts."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta and not value.is_complex():
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= torch.finfo(torch.float32).max else None


def _hidden(transformer: nn.Module) -> int:
    stack = transformer.encoder if isinstance(transformer, nn.Transformer) else transformer
    return stack.layers[0].self_attn.embed_dim if len(stack.layers) else 0


def _positions(value: Any) -> tuple[Tensor | None, list[str]]:
    """A table [rows, d] from a tensor (axes of size 1 allowed), a parameter or an embedding."""
    if value is None:
        return None, []
    if isinstance(value, nn.Embedding):
        value = value.weight
    if not isinstance(value, Tensor):
        return None, [f"positions is a {type(value).__name__}, not a [max_length, d] tensor, nn.Embedding or None"]
    table = value.detach()
    if table.dim() == 3 and 1 in table.shape[:2]:
        table = table.squeeze(0 if table.shape[0] == 1 else 1)
    if table.dim() != 2 or not table.is_floating_point():
        return None, [f"positions has shape {list(value.shape)} and type {value.dtype}, not float [max_length, d]"]
    if not len(table):
        return None, ["positions has 0 rows, at least 1 is needed"]
    return table, []


def _width_problems(modules: dict[str, Any], positions: Tensor | None, hidden: int, labels: bool) -> list[str]:
    """`labels`: the head gives labels, not ids of the vocabulary."""
    problems = []
    for name, module in modules.items():
        if isinstance(module, nn.Embedding) and module.embedding_dim != hidden:
            problems.append(f"{name} is {module.embedding_dim} wide and the transformer {hidden}")
    output = modules["target_embedding" if "target_embedding" in modules else "embedding"]
    head = modules["head"]
    if head is not None and head.in_features != hidden:
        problems.append(f"head takes {head.in_features} and the transformer gives {hidden}")
    if head is not None and same_storage(head.weight, output.weight) is False and head.weight.data_ptr() == output.weight.data_ptr():
        problems.append("head and embedding share memory but not shape")
    rows = output.num_embeddings
    if head is not None and not labels and head.out_features > rows:
        problems.append(f"head gives {head.out_features} logits and the embedding that takes the answers has {rows} rows")
    if positions is not None and positions.shape[1] != hidden:
        problems.append(f"positions is {positions.shape[1]} wide and the transformer {hidden}")
    return problems


def _id_problems(adapter: Any, modules: dict[str, Any]) -> list[str]:
    problems = []
    source = modules["source_embedding" if "source_embedding" in modules else "embedding"].num_embeddings
    target = modules["target_embedding"].num_embeddings if "target_embedding" in modules else source
    answers = target if modules["head"] is None else min(target, modules["head"].out_features)
    bounds = {"pad_id": min(source, target), "bos_id": answers, "eos_id": answers, "decoder_start_id": answers}
    for name, bound in bounds.items():
        value = getattr(adapter, name, None)
        if value is None and name in ("decoder_start_id",) or not hasattr(adapter, name):
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) < bound:
            problems.append(f"{name} is {value!r}, not an id from 0 to {bound - 1}")
    return problems


def _max_length(value: Any, positions: Tensor | None) -> tuple[int | None, list[str]]:
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= LONGEST):
        return None, [f"max_length is {value!r:.40}, not a number of positions from 1 to {LONGEST}"]
    value = None if value is None else int(value)
    if positions is None:
        return value, []
    if value is not None and value > positions.shape[0]:
        return None, [f"max_length is {value} and positions hold {positions.shape[0]}"]
    return value or positions.shape[0], []


def _broken(part: nn.Module | Tensor) -> list[str]:
    if isinstance(part, nn.Module):
        return [name for name, value in part.state_dict().items() if not is_finite(value)]
    return [] if is_finite(part) else ["table"]
