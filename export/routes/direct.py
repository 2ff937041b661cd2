"""The direct route: any module, traced as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onnxport.errors import CheckpointError, one_line
from onnxport.export.adapters import Module
from onnxport.export.exported import Exported
from onnxport.export.source import Source
from onnxport.export.trace.axes import (
    Axes,
    argument_names,
    axis_sizes,
    checked,
    conventional,
    discovered,
    other_sizes,
    resized,
    traced_sizes,
)
from onnxport.export.trace.tracer import Names, trace
from onnxport.export.user_code import check_alike, evaluating, on_cpu_in_float32, one_thread, unchanged
from onnxport.export.weights import is_finite, module_hashes, without_values
from onnxport.progress import Progress

TEXT = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
LARGEST = 64  # free axes of goldens stay at most this long where the examples are longer


def export_module(source: Source, adapter: Module, task: str, opset: int, progress: Progress) -> Exported:
    """Traces a Module adapter at sizes that nothing can mistake for constants, and answers it at others."""
    flat = flat_call(adapter)
    call, examples = flat.call, flat.examples
    with evaluating(adapter.module, call), one_thread():
        progress("running the module on its example inputs")
        try:
            with unchanged(call):
                whole = call.whole(list(examples.values()))
            with unchanged(call):
                again = call.whole(list(examples.values()))
        except Exception as error:
            raise CheckpointError(f"the module does not run on its example inputs: {type(error).__name__}: {one_line(error)}") from error
        leaves = pytree.tree_leaves(whole)
        check_alike("the module", leaves, pytree.tree_leaves(again))
        count = sum(isinstance(leaf, Tensor) for leaf in leaves)
        others = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
        if not count:
            raise CheckpointError(f"the module gives no tensor, but {', '.join(others) or 'nothing'}; return the tensors to export")
        if others:
            progress(f"leaving out what the module gives besides tensors: {', '.join(others)}")
        names = output_names(adapter.outputs, whole, count)
        if clash := set(names) & set(examples):
            raise CheckpointError(f"{', '.join(sorted(clash))} is the name of an input and of an output; name the outputs apart")
        dynamic, base = free_axes(adapter, call, examples)
        sizes = axis_sizes(base, dynamic)
        traced = resized(base, dynamic, traced_sizes(sizes), 0)
        progress("asking the original for golden answers")
        goldens = module_goldens(flat.original, examples, base, dynamic, names, traced_sizes(sizes))
        progress("tracing the module")
        shapes: Any = {"tensors": tuple(dynamic.get(name, {}) or None for name in traced)}
        parameters = {f"module.{name}": name for name, _ in [*adapter.module.named_parameters(), *adapter.module.named_buffers()]}
        modules = {"module": ""} | {f"module.{name}": name for name, _ in adapter.module.named_modules() if name}
        inputs = {"": tuple(traced.values())}
        model = trace(call, inputs, shapes, list(traced), dict.fromkeys(names, ()), Names(parameters, modules), opset, "model")
    free = {name: {str(axis): label for axis, label in axes.items()} for name, axes in dynamic.items() if axes}
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="direct",
        opset=opset,
        graphs={"model": model},
        goldens=goldens,
        source_hashes=module_hashes({"module": adapter.module}),
        settings={"free_axes": free},
    )


class Call(nn.Module):
    """A module as a function of flat tensors: `forward(*tensors)` → tuple of tensors, whatever the user's own nesting.

    Floating outputs are float32. `types`: what the tensors are turned into for the module (None: they stay as they are).
    """

    def __init__(
        self, module: nn.Module, spec: Any, constants: dict[int, Any], keywords: bool, types: Sequence[torch.dtype] | None = None
    ) -> None:
        super().__init__()
        self.module, self.spec, self.constants, self.keywords, self.types = module, spec, constants, keywords, types

    def nested(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own inputs with these tensors in their places."""
        rest = iter(tensors)
        count = len(tensors) + len(self.constants)
        return pytree.tree_unflatten([self.constants[i] if i in self.constants else next(rest) for i in range(count)], self.spec)

    def whole(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own output."""
        inputs = self.nested(tensors if self.types is None else [t.to(kind) for t, kind in zip(tensors, self.types, strict=True)])
        return self.module(**inputs) if self.keywords else self.module(*inputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Every tensor of the module's output once; what is an input, a weight or a repetition is copied, so that it has its own name."""
        taken = [*tensors, *self.parameters(), *self.buffers()]
        outputs: list[Tensor] = []
        for leaf in pytree.tree_leaves(self.whole(tensors)):
            if isinstance(leaf, Tensor):
                fresh = all(leaf is not other for other in taken)
                taken.append(leaf)
                leaf = leaf if fresh else leaf.clone()
                outputs.append(leaf.float() if leaf.is_floating_point() else leaf)
        return tuple(outputs)


@dataclass(frozen=True)
class Flat:
    """A module as a function of named tensors: `call` is what is traced, in float32 on the CPU, and `original` what gives golden answers:
    the same, except that a module in float64 answers in float64. `examples` are float32 where they are floating."""

    call: Call
    original: Call
    examples: dict[str, Tensor]


def flat_call(adapter: Module) -> Flat:
    """The adapter's module and examples, flat. CheckpointError for inputs that are none, and for weights that cannot be right."""
    if not isinstance(adapter.module, nn.Module):
        raise CheckpointError(f"Module needs a torch.nn.Module, got a {type(adapter.module).__name__}")
    example = adapter.inputs
    if isinstance(example, Tensor):
        example = (example,)
    if not isinstance(example, Mapping | tuple | list) or not example:
        raise CheckpointError(f"Module needs example inputs by name or in order, got {type(example).__name__} {example!r:.40}")
    keywords = isinstance(example, Mapping)
    inputs = dict(example) if keywords else tuple(example)
    leaves, spec = pytree.tree_flatten_with_path(inputs)
    names = argument_names(adapter.module, len(inputs))
    tensors: dict[str, Tensor] = {}
    constants: dict[int, Any] = {}
    for i, (path, leaf) in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            constants[i] = leaf
            continue
        first, *rest = [_key(entry) for entry in path]
        tensors["_".join([first if keywords else names[int(first)], *rest])] = leaf.detach()
    if not tensors:
        raise CheckpointError("Module's inputs hold no tensor")
    problems = [f"the module {text}" for text in without_values(adapter.module)]
    problems += [f"input {name} {text}" for name, tensor in tensors.items() for text in without_values(tensor)]
    if problems := problems or _broken(adapter.module):
        raise CheckpointError(f"weights or inputs that cannot be right: {'; '.join(problems)}")
    module = on_cpu_in_float32({"module": adapter.module})["module"]
    call = Call(module, spec, constants, keywords)
    state = [*adapter.module.parameters(), *adapter.module.buffers(), *tensors.values()]
    dtypes = {tensor.dtype for tensor in state if tensor.is_floating_point()}
    exact = torch.float64 in dtypes and dtypes <= {torch.float32, torch.float64} and {t.device.type for t in state} == {"cpu"}
    original = Call(adapter.module, spec, constants, keywords, [tensor.dtype for tensor in tensors.values()]) if exact else call
    examples = {name: tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu() for name, tensor in tensors.items()}
    return Flat(call, original, examples)


def _broken(module: nn.Module) -> list[str]:
    """Weights with NaN or infinity; a buffer may hold infinities, as masks do."""
    weights = [f"{name} holds NaN or infinity" for name, value in module.named_parameters() if not is_finite(value)]
    return weights + [f"{name} holds NaN" for name, value in module.named_buffers() if torch.isnan(value).any()]


def output_names(wanted: Sequence[str] | None, whole: Any, count: int) -> list[str]:
    """The user's names, or the keys of the module's own output, or output, output_1, ..."""
    if wanted is not None:
        if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not all(isinstance(name, str) and name for name in wanted):
            raise CheckpointError(f'outputs is {wanted!r:.60}, expected a list of names as ["logits"]')
        names = list(wanted)
        if len(names) != count or len(set(names)) != count:
            raise CheckpointError(f"outputs names {len(names)} ({', '.join(names)}), and the module gives {count} tensors; name each once")
        return names
    if isinstance(whole, Tensor):
        return ["output"]
    names = []
    for path, leaf in pytree.tree_flatten_with_path(whole)[0]:
        if isinstance(leaf, Tensor):
            keys = [_key(entry) for entry in path]
            names.append("_".join(keys) if not keys[0].isdigit() else "_".join(["output", *keys]))
    return names


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def free_axes(adapter: Module, call: Call, examples: dict[str, Tensor]) -> tuple[dict[str, Axes], dict[str, Tensor]]:
    """Free axes by input, and the examples that they were found with."""
    if adapter.dynamic is not None:
        return checked(adapter.dynamic, examples), examples
    usual = conventional(adapter.module, examples)
    if usual is not None:
        return checked(usual, examples), examples
    found, base = discovered(call, examples)
    return _text_axes(found, base) or found, base


def _text_axes(found: dict[str, Axes], base: dict[str, Tensor]) -> dict[str, Axes] | None:
    """The usual axes of ids and what belongs to them, where all of them are free: code that lays masks out anew can hide that rows belong
    together. None for other inputs."""
    shapes = {tuple(tensor.shape) for tensor in base.values()}
    if not set(base) <= TEXT or len(shapes) != 1 or any(set(found.get(name, {})) != {0, 1} for name in base):
        return None
    return {name: {0: "batch", 1: "sequence"} for name in base}


def module_goldens(
    call: Call, examples: dict[str, Tensor], base: dict[str, Tensor], dynamic: dict[str, Axes], names: list[str], traced: dict[str, int]
) -> dict[str, np.ndarray]:
    """`case{i}/in/...` and `case{i}/out/...`: the examples as given, and other sizes of the free axes.

    CheckpointError when the module runs at none of the other sizes: then the axes are not free.
    """
    result = _answers(call, examples, names, 0)
    if not traced:
        return result
    reasons = []
    bounded = {label: min(size, LARGEST) for label, size in traced.items()}
    for sizes in other_sizes(bounded):
        inputs = resized(base, dynamic, sizes, len(result))
        try:
            result |= _answers(call, inputs, names, len({key.split("/")[0] for key in result}))
        except Exception as error:  # a size the module itself does not take is no golden
            reasons.append(f"{sizes}: {one_line(error)}")
    if len(reasons) == len(other_sizes(bounded)):
        raise CheckpointError(
            f"the module runs at no other size of its free axes than its examples' ({reasons[-1]}); name fewer in dynamic"
        )
    return result


def _answers(call: Call, inputs: dict[str, Tensor], names: list[str], case: int) -> dict[str, np.ndarray]:
    with unchanged(call):
        outputs = [tensor.clone() for tensor in call(*(tensor.clone() for tensor in inputs.values()))]
    for name, tensor in zip(names, outputs, strict=True):
        if torch.isnan(tensor).any():
            raise CheckpointError(f"the module answers NaN in {name}; give examples and weights that it can answer")
    result = {f"case{case}/in/{name}": tensor.numpy() for name, tensor in inputs.items()}
    return result | {f"case{case}/out/{name}": tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}
