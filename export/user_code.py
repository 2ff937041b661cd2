"""Running of the user's code, which leaves modules, torch's global switches and the terminal exactly as they were."""

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

from onnxport.errors import CheckpointError


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Runs a user's code: what it prints goes to standard error, and its `sys.exit` is a CheckpointError that says `what` it left."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise CheckpointError(f"{what} ended with SystemExit: {error.code}; it must return instead of leaving the process") from error


@contextmanager
def silence() -> Iterator[None]:
    """Keeps the exporter's progress lines and warnings off the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def evaluating(*modules: nn.Module, fused: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, PyTorch's unfused attention path and a private random state; all of it undone afterwards, whatever happens,
    and buffers as they were. The modules' code is `contained`.

    The mode is set flag by flag: a module's own `train` or `eval` may do more than that. The fused path is off, unless `fused`, because it
    cannot be traced, and because a golden answer must not depend on which path a shape happens to take.
    """
    training = [(part, part.training) for module in modules for part in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for part, _ in training:
            part.training = False
        if not fused:
            torch.backends.mha.set_fastpath_enabled(False)
        with (
            contained("the model"),
            unchanged(*modules),
            nullcontext() if fused else masks_as_they_are(),
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in training:
            part.training = mode


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Gives every buffer back its tensor and its values afterwards, whatever a forward did to it."""
    buffers = [
        (part, name, tensor, None if tensor is None else tensor.detach().clone())
        for module in modules
        for part in module.modules()
        for name, tensor in part._buffers.items()
    ]
    try:
        yield
    finally:
        for part, name, tensor, values in buffers:
            part._buffers[name] = tensor
            if tensor is not None and values is not None:
                with torch.no_grad():
                    tensor.copy_(values)


def check_alike(what: str, answers: Sequence[Any], again: Sequence[Any]) -> None:
    """CheckpointError unless two runs on the same inputs gave as many outputs, and tensors with the same numbers. what: that was run."""
    pairs = zip(answers, again, strict=False)
    if len(answers) != len(again) or not all(_alike(one, other) for one, other in pairs if isinstance(one, Tensor)):
        raise CheckpointError(
            f"{what} answers otherwise each time it runs, in eval mode too; "
            "take random numbers out of it, such as F.dropout without training=self.training"
        )


def _alike(one: Tensor, other: Any) -> bool:
    """The same numbers, floating ones but for what the order of sums does; NaN is like NaN."""
    if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_floating_point() or one.is_complex():
        return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool(torch.equal(one, other))


@contextmanager
def masks_as_they_are() -> Iterator[None]:
    """Keeps PyTorch's Transformer from asking whether a mask is causal: the answer is a branch on values, which cannot be traced."""
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda *arguments, **keywords: False
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, however many cores there are: the same answers to the last bit on every machine of a kind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_cpu_in_float32(parts: dict[str, Any]) -> dict[str, Any]:
    """The same parts where every floating tensor is float32 on the CPU, else a copy that is (ties between parts are kept)."""
    tensors = [t for part in parts.values() for t in _tensors(part)]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return parts
    parts = copy.deepcopy(parts)
    return {name: part.float().cpu() if isinstance(part, nn.Module | Tensor) else part for name, part in parts.items()}


def _tensors(part: Any) -> list[Tensor]:
    if isinstance(part, nn.Module):
        return [*part.parameters(), *part.buffers()]
    return [part] if isinstance(part, Tensor) else []
