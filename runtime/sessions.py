"""Devices, and ONNX Runtime sessions on them: the requested device or an error, and one setting for all sessions of a model."""

from __future__ import annotations

import os
import re
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.errors import BundleError, DeviceError, OnnxportError, UsageError, one_line
from onnxport.extras import require
from onnxport.runtime.memory.external_data import out_of_reach
from onnxport.runtime.memory.mappings import mapped, own
from onnxport.runtime.memory.native import native
from onnxport.runtime.other_names import hint
from onnxport.runtime.processor import cores, make_exact

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Device:
    """A device that models run on, and what of ONNX Runtime is particular to it.

    name: as users write it, and ONNX Runtime. provider: the execution provider. disabled_optimizers: graph optimizations that are off.
    host_memory: caches and logits lie in host memory, so that rows are moved in place and bound arrays need no copy. fallback: nodes may
    run on the CPU; without, none may but those that reckon with shapes, which lie there. preload: the provider's libraries are loaded
    before the first session. missing: words in ONNX Runtime's errors that blame the device rather than the file. energy: the counter of its
    energy, "rapl" or "nvml".
    """

    name: str
    provider: str
    disabled_optimizers: tuple[str, ...]
    host_memory: bool
    fallback: bool
    preload: bool
    missing: tuple[str, ...]
    energy: str


# MatmulTransposeFusion: ONNX Runtime 1.32 ends the process with a segmentation fault where it meets Cast, Transpose, MatMul in float16
# on the CPU. SkipLayerNormFusion: on the CPU its kernel is several times slower than the two nodes that it replaces.
CPU = Device(
    "cpu", "CPUExecutionProvider", ("MatmulTransposeFusion", "SkipLayerNormFusion"),
    host_memory=True, fallback=True, preload=False, missing=(), energy="rapl",
)  # fmt: skip
CUDA = Device(
    "cuda", "CUDAExecutionProvider", ("MatmulTransposeFusion",),
    host_memory=False, fallback=False, preload=True, missing=("CUDA",), energy="nvml",
)  # fmt: skip
DEVICES = {device.name: device for device in (CPU, CUDA)}


def required_device(target: str) -> Device | None:
    """The only device that variants with this target run on; None where they run on any."""
    device = DEVICES.get(target)
    return None if device is None or device.host_memory else device


NUMPY_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16", "tensor(uint8)": "uint8",
}  # fmt: skip

MOST_THREADS = 1024
LARGE = 3 * 2**28  # bytes of a graph's files
PACKED = b"MatMulNBits"  # without packed weights another kernel computes it, which holds them as float32
SPIN_US = 1000
SHAPE_ARITHMETIC = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Max", "Min", "Mul", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)
NO_KERNEL = "Failed to find kernel for QLinear"
_open: weakref.WeakSet[Any] = weakref.WeakSet()
_leaked: list[Any] = []
_loading = threading.Lock()  # files are mapped by one thread at a time, see onnxport.runtime.memory.mappings


def _leak() -> None:
    # The worker threads of ONNX Runtime stay in the parent: to free a session in the child would wait for them for ever.
    global _loading
    _leaked.extend(_open)
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leak)


@dataclass(frozen=True)
class Sessions:
    """Opens every session of a model alike.

    device: a name in DEVICES. threads: of one operator. exact: graphs may hold products of 8 bits, see onnxport.runtime.processor.
    sparing: for checks, on the CPU: of LARGE weights nothing is copied, so that they take no memory of their own; runs are slower.
    """

    device: str
    threads: int
    exact: bool = True
    sparing: bool = False

    @classmethod
    def on(cls, device: str = "cpu", threads: int | None = None) -> Sessions:
        """Sessions for a device; threads: None is all cores of this process.

        UsageError for an unknown device or a bad thread count, DeviceError when the device cannot be had.
        """
        onnxruntime = _runtime()

        if device not in DEVICES:
            raise UsageError(f"device is {device!r}, expected one of {', '.join(DEVICES)}{hint('device', device)}")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
            raise UsageError(f"threads is {threads!r}, expected a whole number from 1 to {MOST_THREADS}")
        available, provider = onnxruntime.get_available_providers(), DEVICES[device].provider
        if provider not in available:
            raise DeviceError(f"device {device}: this onnxruntime has no {provider} (it has {', '.join(available)}); install onnxport[gpu]")
        return cls(device, threads or cores())

    def options(self, steady: bool = True, threads: int | None = None) -> onnxruntime.SessionOptions:
        """Options common to all sessions. steady: the session runs again and again, nothing else between; threads: other than usual."""
        onnxruntime = _runtime()

        device = DEVICES[self.device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Spinning workers answer the next small node at once, but more of them than cores take time from those that work. So they spin
        # from one step to the next and not much longer; those of a session that is not steady stop when its run ends.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.threads <= cores() else "0")
        if steady:
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        else:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if not device.fallback:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # see `_check_placement`
        elif self.exact:
            make_exact(options)
        return options

    def _spare(self, files: set[str], graph: Path, options: onnxruntime.SessionOptions, disabled: list[str]) -> set[str]:
        """The files that stay mapped where this is `sparing`: all of a large graph's, as far as kernels stay the same."""
        if not (self.sparing and DEVICES[self.device].host_memory and sum(map(os.path.getsize, files)) >= LARGE):
            return set()
        options.enable_cpu_mem_arena = False  # it would keep what was needed once
        disabled.append("ConstantFolding")  # it would hold weights in another type beside those of the file
        if PACKED not in graph.read_bytes():
            options.add_session_config_entry("session.disable_prepacking", "1")
        return files

    def quiet_run(self) -> onnxruntime.RunOptions:
        """Options of runs whose arrays come from callers: an error is raised, and nothing of it is printed besides."""
        options = _runtime().RunOptions()
        options.log_severity_level = 4
        return options

    def open(
        self,
        path: str | Path,
        steady: bool = True,
        threads: int | None = None,
        adjust: Callable[[onnxruntime.SessionOptions], None] | None = None,
    ) -> onnxruntime.InferenceSession:
        """A session for the graph at `path`; see `options`. adjust: changes these options for this session alone.

        BundleError when it cannot be loaded, DeviceError when it would run elsewhere.
        """
        import numpy as np

        onnxruntime = _runtime()

        device = DEVICES[self.device]
        if device.preload and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        options, disabled = self.options(steady, threads), list(device.disabled_optimizers)
        if adjust is not None:
            adjust(options)
        try:
            outside = out_of_reach(Path(path))
            files = {os.path.realpath(file) for file in (*Path(path).parent.iterdir(), *outside.values())}
            staying = self._spare(files, Path(path), options, disabled)
            linked: dict[str, Any] = {}
            with native, _loading:
                before = mapped(files)
                try:
                    for location, file in outside.items():
                        linked[location] = np.memmap(file, np.uint8, "c")
                    if linked:
                        sizes = [array.nbytes for array in linked.values()]
                        options.add_external_initializers_from_files_in_memory(list(linked), list(linked.values()), sizes)
                    session = onnxruntime.InferenceSession(
                        str(path), options, providers=[device.provider], disabled_optimizers=disabled, enable_fallback=0
                    )
                except BaseException as e:
                    linked.clear()
                    traceback.clear_frames(e.__traceback__)  # they hold a session that is half made, with its mapped files
                    raise
                own(files - staying, before)
        except Exception as e:  # ONNX Runtime's errors share no base class
            reason = one_line(e)
            if self.exact and NO_KERNEL in reason:  # weights that were made uint8 have no kernel beside activations of int8
                return replace(self, exact=False).open(path, steady, threads, adjust)
            if any(word in reason for word in device.missing):
                raise DeviceError(f"{path}: cannot run on {device.name} ({reason}); use device cpu or a variant made for it") from e
            raise BundleError(f"{path}: ONNX Runtime cannot load it ({reason}); upgrade onnxruntime or export the model again") from e
        _check_placement(session, device, path)
        session.linked_weights = linked  # ONNX Runtime keeps no reference to this memory
        _open.add(session)
        return session


def _check_placement(session: onnxruntime.InferenceSession, device: Device, path: str | Path) -> None:
    """DeviceError where a session runs elsewhere than asked for.

    On a device without fallback no node may run on the CPU but those that reckon with shapes: ONNX Runtime leaves these there on purpose.
    """
    if session.get_providers()[:1] != [device.provider]:
        raise DeviceError(
            f"{path}: asked for {device.provider}, got {', '.join(session.get_providers())}; check the driver, CUDA and cuDNN"
        )
    if device.fallback:
        return
    parts = session.get_provider_graph_assignment_info()
    stray = {node.op_type for part in parts if part.ep_name != device.provider for node in part.get_nodes()} - SHAPE_ARITHMETIC
    if stray:
        raise DeviceError(
            f"{path}: {device.name} has no kernel for {', '.join(sorted(stray))} here; use device cpu or a variant made for it"
        )


def _runtime() -> Any:
    """The package onnxruntime. UsageError where it is not installed."""
    return require("onnxruntime", "cpu", "running a model", "gpu")


def check_version(oldest: str | None, what: str, advice: str = "upgrade onnxruntime") -> None:
    """BundleError where the installed ONNX Runtime is older than version `oldest`, such as "1.23"; None passes. what: that needs it."""
    if oldest is None:
        return
    onnxruntime = _runtime()

    if is_older(onnxruntime.__version__, oldest):
        raise BundleError(f"{what} needs onnxruntime {oldest} or newer, found {onnxruntime.__version__}; {advice}")


def is_older(version: str, other: str) -> bool:
    """Whether a version such as "1.23" comes before another."""
    return _numbers(version) < _numbers(other)


def _numbers(version: str) -> list[int]:
    """The numbers that a version begins with, without zeros at the end: 1.32.0.dev5 is [1, 32]."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def run_bound(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
    """Run into the bound outputs. OnnxportError with ONNX Runtime's reason."""
    try:
        with native:
            session.run_with_iobinding(binding)
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise OnnxportError(f"ONNX Runtime could not run the model ({one_line(e)}); check the bundle with `onnxport verify`") from e


def value_of(array: Any, device: Device = CPU) -> onnxruntime.OrtValue:
    """An OrtValue of a C-contiguous array; on the CPU it shares the array's memory."""
    onnxruntime = _runtime()

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device.name)


def part(value: onnxruntime.OrtValue, start: int, stop: int) -> onnxruntime.OrtValue:
    """Rows `start` to `stop` of a float32 matrix in host memory, which they share; whoever uses them keeps `value`."""
    import ctypes

    import numpy as np

    rows, columns = value.shape()
    memory = (ctypes.c_float * (rows * columns)).from_address(value.data_ptr())
    return value_of(np.frombuffer(memory, np.float32).reshape(rows, columns)[start:stop])


def empty_value(shape: tuple[int, ...], dtype: Any, device: Device) -> onnxruntime.OrtValue:
    """An uninitialized OrtValue on the device."""
    onnxruntime = _runtime()

    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device.name)
