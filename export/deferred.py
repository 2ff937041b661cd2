"""Parameters that stay in their checkpoint's file and type: whoever reads one gets its float32 values, made for the moment.

A module holds stand-ins, whose dtype and shape are right and whose values are NaN. Reading `module.weight` makes the values of what the
parameter stands for; the latest that were made are kept, as many as one layer has. Several runs of a model go through its layers in step,
so that values made once serve all of them. Runs of classes that keep nothing of a run are shared out among the processor's cores.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onnxport.graph.store import collect
from onnxport.runtime.processor import cores

Values = Callable[[], Tensor]
Result = TypeVar("Result")
LEAST_KEPT, BESIDE = 2**28, 2**24  # bytes; the latter of norms and biases, beside which a table of tokens is kept
LARGE = 2**30  # numbers
AT_ONCE = 8  # runs: each has activations of its own
VARYING_ROPE = {"dynamic", "longrope"}  # rotary positions that change with the length of a text
SETTING = ("__init__", "_init", "post_init", "set_", "tie_", "resize_", "_resize", "prune", "_prune")  # methods that no forward calls
WRITING = re.compile(r"\bself\.\w+(\[[^\]]*\])?\s*[-+*/]?=(?!=)")


class Kept:
    """The values that were made last, by what makes them. Several threads may ask; one makes values at a time."""

    def __init__(self) -> None:
        self.most = LEAST_KEPT
        self._made: OrderedDict[Values, nn.Parameter] = OrderedDict()
        self._lock, self._making = threading.Lock(), threading.RLock()  # values may be made of others

    def of(self, values: Values, size: int) -> nn.Parameter:
        """The values, as a parameter. size: their bytes."""
        found = self._found(values)
        if found is not None:
            return found
        with self._making:
            found = self._found(values)  # another thread may have made them meanwhile
            if found is not None:
                return found
            with self._lock:  # before more is made: what goes and what comes are not in memory together, unless another thread uses it
                kept = sum(made.nbytes for made in self._made.values())
                while self._made and kept + size > self.most:
                    kept -= self._made.popitem(last=False)[1].nbytes
            made = nn.Parameter(values(), requires_grad=False)
            with self._lock:
                self._made[values] = made
            return made

    def _found(self, values: Values) -> nn.Parameter | None:
        with self._lock:
            if values in self._made:
                self._made.move_to_end(values)
            return self._made.get(values)

    def clear(self) -> None:
        """Lets all of them go."""
        with self._lock:
            self._made.clear()


class Parameters(dict[str, Any]):
    """A module's parameters, of which some are stand-ins: an item is read as its values, all items together as they are."""

    def __init__(self, parameters: dict[str, Any], kept: Kept) -> None:
        super().__init__(parameters)
        self.kept = kept

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        values = None if _unread.get() else deferred(found)
        return found if values is None else self.kept.of(values, found.nbytes)


_unread: contextvars.ContextVar[bool] = contextvars.ContextVar("unread", default=False)


def deferred(parameter: Any) -> Values | None:
    """What makes the values that a stand-in stands for; None for what is no stand-in."""
    return getattr(parameter, "makes_values", None)


def parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter of a module as it is, a stand-in too."""
    found: Tensor = dict.__getitem__(module._parameters, name)
    return found


def weight_shape(module: nn.Module) -> torch.Size:
    """The shape of a module's `weight`, for which no values are made; of none, that of no dimension."""
    found = dict.get(module._parameters, "weight")
    found = getattr(module, "weight", None) if found is None else found
    return found.shape if isinstance(found, Tensor) else torch.Size()


def values_of(parameter: Tensor) -> Tensor:
    """The values of a parameter, whether it is a stand-in or not."""
    make = deferred(parameter)
    return parameter if make is None else make()


def defer(parameter: nn.Parameter, shape: torch.Size, values: Values) -> None:
    """Makes a parameter a stand-in of float32, which takes no memory. Its module must be passed to `read_deferred`, too."""
    parameter.data = torch.full((), float("nan")).expand(shape)
    parameter.makes_values = values


def defer_all(module: nn.Module) -> None:
    """Makes all floating parameters of a module stand-ins for what they are in float32; tied ones stay tied."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            stored = parameter.data
            parameter.data = torch.empty(0)
            defer(parameter, stored.shape, stored.float)
    read_deferred(module)


def has_deferred(module: nn.Module) -> bool:
    """Whether some of a module's parameters are stand-ins."""
    return any(deferred(parameter) is not None for parameter in module.parameters())


def is_large(modules: Iterable[nn.Module]) -> bool:
    """Whether modules have so many stand-ins that each run takes a while: all their values are made again for it."""
    stand_ins = {id(p): p.numel() for module in modules for p in module.parameters() if deferred(p) is not None}
    return bool(sum(stand_ins.values()) > LARGE)


def read_deferred(module: nn.Module) -> None:
    """Has all that reads the module's stand-ins find their values; as many are kept as its largest layer or parameter has."""
    kept = Kept()
    sizes = [sum(4 * p.numel() for p in layer.parameters()) for layer in layers(module)]
    kept.most = max([LEAST_KEPT, *sizes, *(4 * p.numel() for p in module.parameters())]) + BESIDE
    for part in module.modules():
        if any(deferred(parameter) is not None for parameter in part._parameters.values()):
            part.__dict__["_parameters"] = Parameters(part._parameters, kept)
            part.register_state_dict_post_hook(_with_values)


def _with_values(part: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The state of a module holds values, as that of any other, but in a trace."""
    if not _unread.get():
        for name, parameter in part._parameters.items():
            if (make := deferred(parameter)) is not None:
                state[prefix + name] = make()


def materialize(module: nn.Module) -> None:
    """Has a module hold all its parameters' values in memory: for who runs it again and again."""
    for part in module.modules():
        if isinstance(part._parameters, Parameters):
            part._parameters.kept.clear()
            part.__dict__["_parameters"] = dict(part._parameters)
    for parameter in module.parameters():
        if (make := deferred(parameter)) is not None:
            parameter.data = make()
            del parameter.makes_values


def forget(module: nn.Module) -> None:
    """Lets go of the values that are kept for the module."""
    for part in module.modules():
        if isinstance(part._parameters, Parameters):
            part._parameters.kept.clear()


@contextmanager
def unread(module: nn.Module) -> Iterator[None]:
    """For a trace: stand-ins are read as they are, and look like any parameter in memory, whose pages nobody touches."""
    stand_ins = [parameter for parameter in module.parameters() if deferred(parameter) is not None]
    before = [parameter.data for parameter in stand_ins]
    forget(module)
    mark = _unread.set(True)
    try:
        for parameter in stand_ins:
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)
        yield
    finally:
        _unread.reset(mark)
        for parameter, data in zip(stand_ins, before, strict=True):
            parameter.data = data


def layers(module: nn.Module) -> list[nn.Module]:
    """The members of a module's lists of modules, but for lists within members."""
    found: list[nn.Module] = []

    def walk(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(child, nn.ModuleList) and len(child) > 1:
                found.extend(child)
            else:
                walk(child)

    walk(module)
    return found


def in_step(modules: Sequence[nn.Module], calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of calls that run the modules, in their order.

    Where modules have stand-ins, all calls run the first layer before any runs the second, and so on, and the last one before any runs
    what comes behind it. Each computes what it would alone. As many run at a time as the process has cores, where torch has one thread to
    itself and the modules are such as `_runs_in_threads` tells, but `AT_ONCE` at most; else one runs at a time.
    """
    if len(calls) < 2 or not any(map(has_deferred, modules)):
        return [call() for call in calls]
    turns = _Turns(len(calls), min(cores(), AT_ONCE) if torch.get_num_threads() == 1 and all(map(_runs_in_threads, modules)) else 1)
    every = [layers(module) for module in modules]
    handles = [layer.register_forward_pre_hook(lambda *_: turns.pass_on()) for found in every for layer in found]
    handles += [found[-1].register_forward_hook(lambda *_: turns.pass_on()) for found in every if found]
    try:
        return turns.run(calls)
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            forget(module)
        collect()


def _runs_in_threads(module: nn.Module) -> bool:
    """Whether all of a module is of classes of transformers, PyTorch or ours that write nothing to themselves while they run."""
    kinds: set[Any] = {type(part) for part in module.modules()}
    return not any(map(_writes, kinds)) and not any(VARYING_ROPE & _ropes(part) for part in module.modules())


def _ropes(part: nn.Module) -> set[Any]:
    """The kinds of rotary positions of a part: it may have one for each type of layer."""
    kind = getattr(part, "rope_type", None)
    return set(kind.values()) if isinstance(kind, dict) else {kind}


@functools.cache
def _writes(kind: Any) -> bool:
    """Whether a class may write to itself while it runs: somebody's own, or one of transformers whose code says so."""
    if kind.__module__.partition(".")[0] not in {"torch", "transformers", "onnxport"}:
        return True
    methods = [
        method
        for base in kind.__mro__
        if base.__module__.startswith("transformers.models.")
        for name, method in vars(base).items()
        if inspect.isfunction(method) and not name.startswith(SETTING)
    ]
    return any(WRITING.search(inspect.getsource(method)) for method in methods)


class _Turns:
    """Threads that run in rounds: a round ends when each has run up to where it passes its turn on, or is done.

    at_once: how many run at a time. Those that took longest in the round before begin first, so that no core waits long for the last.
    """

    def __init__(self, count: int, at_once: int) -> None:
        self._turn = [threading.Semaphore(0) for _ in range(count)]
        self._begun, self._took = [0.0] * count, [0.0] * count  # seconds of the round
        self._waiting, self._passed = list(range(count)), list[int]()  # those whose turn in this round is to come, and is over
        self._running, self._at_once = 0, at_once
        self._lock = threading.Lock()
        self._own = threading.local()
        self._stopped = False

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of the calls. An error in one ends all of them."""
        results: list[Any] = [None] * len(calls)
        errors: list[BaseException] = []
        threads, grad = torch.get_num_threads(), torch.is_grad_enabled()

        def work(i: int) -> None:
            self._own.index = i
            self._turn[i].acquire()
            try:
                if not self._stopped:
                    torch.set_num_threads(threads)  # both are a thread's own
                    with torch.set_grad_enabled(grad):
                        results[i] = calls[i]()
            except BaseException as error:
                if not self._stopped:
                    errors.append(error)
                self._stopped = True
            finally:
                self._end_turn(i, done=True)

        workers = [threading.Thread(target=contextvars.copy_context().run, args=(work, i), daemon=True) for i in range(len(calls))]
        for worker in workers:
            worker.start()
        with self._lock:
            self._give_turns()
        try:
            for worker in workers:
                worker.join()
        except BaseException:
            self._stopped = True  # each ends where it would pass the turn on
            for worker in workers:
                worker.join()
            raise
        if errors:
            raise errors[0]
        return results

    def pass_on(self) -> None:
        """Lets the others run up to where this thread is."""
        i = self._own.index
        self._end_turn(i, done=False)
        self._turn[i].acquire()
        if self._stopped:
            raise _Stopped

    def _end_turn(self, i: int, done: bool) -> None:
        with self._lock:
            self._running -= 1
            self._took[i] = time.monotonic() - self._begun[i]
            if not done:
                self._passed.append(i)
            self._give_turns()

    def _give_turns(self) -> None:
        if not self._waiting and not self._running:
            self._waiting, self._passed = sorted(self._passed, key=lambda i: (-self._took[i], i)), []
        while self._waiting and self._running < self._at_once:
            i = self._waiting.pop(0)
            self._running += 1
            self._begun[i] = time.monotonic()
            self._turn[i].release()


class _Stopped(BaseException):
    """The thread's result is not wanted any more."""
