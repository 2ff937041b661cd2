"""The direct route: any module, traced as it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onnxport.errors import CheckpointError
from onnxport.export.adapters import Module
from onnxport.export.axes import argument_names, checked, conventional, discovered
from onnxport.export.families.pytorch_weights import Names
from onnxport.export.guard import evaluating, on_cpu_in_float32
from onnxport.export.result import Exported
from onnxport.export.sampling import Axes, axis_sizes, other_sizes, resized, traced_sizes
from onnxport.export.source import Source
from onnxport.export.trace import trace

LARGEST = 64  # free axes of goldens stay at most this long where the examples are longer


class Call(nn.Module):
    """A module as a function of flat tensors: `forward(*tensors)` → tuple of tensors, whatever the user's own nesting."""

    def __init__(self, module: nn.Module, spec: Any, constants: dict[int, Any], keywords: bool) -> None:
        super().__init__()
        self.module, self.spec, self.constants, self.keywords = module, spec, constants, keywords

    def nested(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own inputs with these tensors in their places."""
        rest = iter(tensors)
        count = len(tensors) + len(self.constants)
        return pytree.tree_unflatten([self.constants[i] if i in self.constants else next(rest) for i in range(count)], self.spec)

    def whole(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own output."""
        inputs = self.nested(tensors)
        return self.module(**inputs) if self.keywords else self.module(*inputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in pytree.tree_leaves(self.whole(tensors)) if isinstance(leaf, Tensor))


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def flat_call(adapter: Module) -> tuple[Call, dict[str, Tensor]]:
    """The module as a function of named tensors, and the examples. CheckpointError for inputs that are none."""
    if not isinstance(adapter.module, nn.Module):
        raise CheckpointError(f"Module needs a torch.nn.Module, got a {type(adapter.module).__name__}")
    given = adapter.inputs
    if isinstance(given, Tensor):
        given = (given,)
    if not isinstance(given, Mapping | tuple | list) or not given:
        raise CheckpointError(f"Module needs example inputs by name or in order, got {type(given).__name__} {given!r:.40}")
    keywords = isinstance(given, Mapping)
    inputs = dict(given) if keywords else tuple(given)
    module = on_cpu_in_float32({"module": adapter.module})["module"] if _is_half(adapter.module) else adapter.module
    leaves, spec = pytree.tree_flatten_with_path(inputs)
    names = argument_names(adapter.module, len(inputs))
    tensors: dict[str, Tensor] = {}
    constants: dict[int, Any] = {}
    for i, (path, leaf) in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            constants[i] = leaf
            continue
        first, *rest = [_key(entry) for entry in path]
        name = "_".join([first if keywords else names[int(first)], *rest])
        half = leaf.dtype in (torch.float16, torch.bfloat16)
        tensors[name] = leaf.detach().cpu().float() if half else leaf.detach().cpu()
    if not tensors:
        raise CheckpointError("Module's inputs hold no tensor")
    return Call(module, spec, constants, keywords), tensors


def _is_half(module: nn.Module) -> bool:
    """Whether the module must be copied: reduced precision or another device than the CPU."""
    state = [*module.parameters(), *module.buffers()]
    return any(t.dtype in (torch.float16, torch.bfloat16) or t.device.type != "cpu" for t in state)


def output_names(given: Sequence[str] | None, whole: Any, count: int) -> list[str]:
    """The user's names, or the keys of the module's own output, or output, output_1, ..."""
    if given is not None:
        names = list(given)
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


def export_module(found: Source, adapter: Module, task: str, opset: int, say: Callable[[str], None]) -> Exported:
    """Traces a Module adapter at sizes that nothing can mistake for constants, and answers it at others."""
    from onnxport.export.pipeline import module_hashes

    call, examples = flat_call(adapter)
    with evaluating(adapter.module, call):
        say("running the module on its example inputs")
        try:
            whole = call.whole(list(examples.values()))
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            raise CheckpointError(f"the module does not run on its example inputs: {type(error).__name__}: {''.join(first)}") from error
        count = len([leaf for leaf in pytree.tree_leaves(whole) if isinstance(leaf, Tensor)])
        names = output_names(adapter.outputs, whole, count)
        if clash := set(names) & set(examples):
            raise CheckpointError(f"{', '.join(sorted(clash))} is the name of an input and of an output; name the outputs apart")
        dynamic, base = free_axes(adapter, call, examples)
        sizes = axis_sizes(base, dynamic)
        traced = resized(base, dynamic, traced_sizes(sizes), 0)
        say("asking the original for golden answers")
        goldens = module_goldens(call, examples, base, dynamic, names, traced_sizes(sizes))
        say("tracing the module")
        shapes: Any = {"tensors": tuple(dynamic.get(name, {}) or None for name in traced)}
        parameters = {f"module.{name}": name for name, _ in [*adapter.module.named_parameters(), *adapter.module.named_buffers()]}
        modules = {"module": ""} | {f"module.{name}": name for name, _ in adapter.module.named_modules() if name}
        inputs = {"": tuple(traced.values())}
        model = trace(call, inputs, shapes, list(traced), dict.fromkeys(names, ()), Names(parameters, modules), opset, "model")
    free = {name: {str(axis): label for axis, label in axes.items()} for name, axes in dynamic.items() if axes}
    return Exported(
        name=found.name,
        task=task,
        family=found.family,
        route="direct",
        opset=opset,
        graphs={"model": model},
        goldens=goldens,
        generation=None,
        source_hashes=module_hashes({"module": adapter.module}),
        settings={"free_axes": free},
    )


def free_axes(adapter: Module, call: Call, examples: dict[str, Tensor]) -> tuple[dict[str, Axes], dict[str, Tensor]]:
    """Free axes by input, and the examples that they were found with."""
    if adapter.dynamic is not None:
        return checked(adapter.dynamic, examples), examples
    usual = conventional(adapter.module, examples)
    return (checked(usual, examples), examples) if usual is not None else discovered(call, examples)


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
            reasons.append(f"{sizes}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}")
    if len(reasons) == len(other_sizes(bounded)):
        raise CheckpointError(
            f"the module runs at no other size of its free axes than its examples' ({reasons[-1]}); name fewer in dynamic"
        )
    return result


def _answers(call: Call, inputs: dict[str, Tensor], names: list[str], case: int) -> dict[str, np.ndarray]:
    outputs = call(*(tensor.clone() for tensor in inputs.values()))
    result = {f"case{case}/in/{name}": tensor.numpy() for name, tensor in inputs.items()}
    return result | {f"case{case}/out/{name}": tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}
