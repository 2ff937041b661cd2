"""Free axes of a module's inputs: which ones there are, and example inputs at other sizes of them.

The tracer would take an axis of size 1 for a constant, and one size proves nothing about the others.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError
from onnxport.export.user_code import silence, unchanged
from onnxport.export.weights import is_finite

Axes = dict[int, str]

# argument → meaning of its axes, by class; "s", "t" and "b" are source, target and batch, "-" a fixed axis
SEQUENCE = {"src_mask": "ss", "mask": "ss", "src_key_padding_mask": "bs"}
CONVENTIONS: dict[type[nn.Module], dict[str, str]] = {
    nn.Transformer: {
        **SEQUENCE,
        "src": "bs-",
        "tgt": "bt-",
        "tgt_mask": "tt",
        "memory_mask": "ts",
        "tgt_key_padding_mask": "bt",
        "memory_key_padding_mask": "bs",
    },
    nn.TransformerEncoder: {**SEQUENCE, "src": "bs-"},
    nn.TransformerDecoder: {
        "tgt": "bt-",
        "memory": "bs-",
        "tgt_mask": "tt",
        "memory_mask": "ts",
        "tgt_key_padding_mask": "bt",
        "memory_key_padding_mask": "bs",
    },
}
NAMES = {"s": "source", "t": "target", "b": "batch"}


def checked(dynamic: Mapping[str, Mapping[int, str]], tensors: Mapping[str, Tensor]) -> dict[str, Axes]:
    """The user's free axes; CheckpointError tells every one that is not there."""
    if not isinstance(dynamic, Mapping):
        raise CheckpointError(f"dynamic is {dynamic!r:.60}, expected {{input: {{axis: name}}}}")
    problems: list[str] = []
    result: dict[str, Axes] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for name, axes in dynamic.items():
        if name not in tensors:
            problems.append(f"there is no input {name}, but {', '.join(tensors)}")
            continue
        if not isinstance(axes, Mapping):
            problems.append(f"{name} has {axes!r}, expected {{axis: name}}")
            continue
        result[name] = {}
        for axis, label in axes.items():
            rank = tensors[name].dim()
            if not isinstance(axis, int) or not -rank <= axis < rank:
                problems.append(f"{name} has {rank} axes, and no axis {axis!r}")
            elif not isinstance(label, str) or not label.isidentifier():
                problems.append(f"{name} axis {axis} is called {label!r}, expected a name")
            else:
                result[name][axis % rank] = label
                size = tensors[name].shape[axis]
                first = sizes.setdefault(label, (size, f"{name} axis {axis}"))
                if first[0] != size:
                    problems.append(f"{label} is {first[0]} in {first[1]} and {size} in {name} axis {axis}")
    if problems:
        raise CheckpointError(f"dynamic does not fit the inputs: {'; '.join(problems)}")
    return result


def conventional(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Axes] | None:
    """Free axes of PyTorch's Transformer classes (and subclasses with their forward); None for any other module."""
    for kind, table in CONVENTIONS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and set(tensors) <= set(table):
            stack = module.encoder if isinstance(module, nn.Transformer) else module
            layers = getattr(stack, "layers", None)
            if layers is None or not hasattr(layers[0], "self_attn"):
                return None
            return {name: _axes(table[name], tensor, layers[0].self_attn.batch_first) for name, tensor in tensors.items()}
    return None


def _axes(meaning: str, tensor: Tensor, batch_first: bool) -> Axes:
    if meaning.endswith("-"):
        if tensor.dim() == 2:  # unbatched
            meaning = meaning[1:]
        elif not batch_first:
            meaning = meaning[1] + meaning[0] + meaning[2]
    elif tensor.dim() == 1:
        meaning = meaning.removeprefix("b")
    return {axis: NAMES[letter] for axis, letter in enumerate(meaning) if letter != "-"}


def argument_names(module: nn.Module, count: int) -> list[str]:
    """Names of the first positional arguments of a module's forward; made up where the signature does not tell."""
    try:
        parameters = [
            p for p in inspect.signature(module.forward).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        names = [parameter.name for parameter in parameters]
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"input_{i}" for i in range(count)]


def discovered(call: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Axes], dict[str, Tensor]]:
    """Free axes as torch.export finds them with every axis allowed to vary, and examples that show them.

    Axes of size 1 are tried at size 3 (the tracer would take a 1 for a constant), all together, then each input's first axis, then none.
    """
    tried: list[dict[str, tuple[int, ...]]] = [
        {name: tuple(range(t.dim())) for name, t in tensors.items()},
        {name: (0,) if t.dim() else () for name, t in tensors.items()},
        dict.fromkeys(tensors, ()),
    ]
    for widen in tried:
        wide = {name: _widened(tensor, widen[name]) for name, tensor in tensors.items()}
        try:
            with silence(), unchanged(call):
                call(*wide.values())
        except Exception:  # the module does not take this shape: whatever it raises says so
            continue
        return _free_axes(call, wide), wide
    return {}, tensors


def _widened(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        if tensor.shape[axis] == 1:
            tensor = tensor.repeat_interleave(3, axis)
    return tensor


def _free_axes(call: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Axes]:
    shapes: Any = (tuple(dict.fromkeys(range(t.dim()), torch.export.Dim.AUTO) for t in tensors.values()),)
    try:
        with silence():
            program = torch.export.export(call, tuple(tensors.values()), dynamic_shapes=shapes, strict=False)
    except Exception:  # not traceable with anything free; the trace itself will fail with a reason, or succeed with nothing free
        return {}
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-len(tensors) :]
    labels: dict[str, str] = {}
    result: dict[str, Axes] = {}
    for name, value in zip(tensors, values, strict=True):
        for axis, size in enumerate(value.shape):
            symbol = getattr(getattr(size, "node", None), "expr", None)
            if isinstance(size, torch.SymInt) and symbol is not None and symbol.is_Symbol:
                result.setdefault(name, {})[axis] = labels.setdefault(str(symbol), f"{name}_{axis}")
    return result


def axis_sizes(tensors: Mapping[str, Tensor], dynamic: Mapping[str, Axes]) -> dict[str, int]:
    """Name of a free axis → its size in the examples (the first one seen)."""
    sizes: dict[str, int] = {}
    for name, axes in dynamic.items():
        for axis, label in axes.items():
            sizes.setdefault(label, tensors[name].shape[axis])
    return sizes


def traced_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """Sizes to trace at: at least 2, no two alike, the user's own where they are already so."""
    result: dict[str, int] = {}
    for label, size in sizes.items():
        candidate = max(size, 2)
        while candidate in result.values():
            candidate += 1
        result[label] = candidate
    return result


def other_sizes(sizes: dict[str, int]) -> list[dict[str, int]]:
    """Sizes to check at, none of them traced: everything 1, each axis apart from the others, and larger all over."""
    names = list(sizes)
    return [
        dict.fromkeys(names, 1),
        {name: sizes[name] + 1 + 2 * i for i, name in enumerate(names)},
        {name: max(1, sizes[name] - 1 - i) for i, name in enumerate(names)},
    ]


def resized(tensors: Mapping[str, Tensor], dynamic: Mapping[str, Axes], sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """The examples at other sizes: values tiled along each free axis, then, where that keeps their meaning, shuffled so rows differ."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        changed = tensor
        for axis, label in dynamic.get(name, {}).items():
            index = torch.arange(sizes[label], device=tensor.device) % tensor.shape[axis]
            changed = changed.index_select(axis, index)
        result[name] = changed if changed.shape == tensor.shape or not _may_shuffle(tensor) else _shuffled(changed, generator)
    return result


def _may_shuffle(tensor: Tensor) -> bool:
    """Ids and real numbers may change places; masks (two values at most, or infinities) may not: a row could lose all of its keys."""
    if tensor.dtype == torch.bool or tensor.is_complex() or tensor.numel() < 2:
        return False
    if tensor.is_floating_point() and not is_finite(tensor):
        return False
    return bool(tensor.unique().numel() > 2)


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.reshape(-1)[order].reshape(tensor.shape).contiguous()
