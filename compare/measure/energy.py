"""Energy meters, where the machine has any: RAPL for processors, NVML for NVIDIA's devices.

Both count everything that the package or the device does, for whomever: figures hold on a machine that does nothing else.
"""

import ctypes
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from onnxport.runtime.sessions import CPU, DEVICES

POWERCAP = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"


@runtime_checkable
class Meter(Protocol):
    """Counts joules. source: what is counted, for the report."""

    source: str

    def joules(self) -> float:
        """Joules since the meter was made; to be read at least every few minutes, before a counter has begun anew twice."""
        ...


def meter(device: str, folder: Path = POWERCAP) -> Meter | str:
    """The meter of a device, or why there is none."""
    return nvml() if DEVICES.get(device, CPU).energy == "nvml" else rapl(folder)


def described(counter: Meter | str, joules_per_unit: float | None) -> dict[str, Any]:
    """The `energy` of a variant in a report: joules_per_unit with its source, or null with the reason."""
    if isinstance(counter, str):
        return {"joules_per_unit": None, "reason": f"not measurable here: {counter}"}
    return {"joules_per_unit": joules_per_unit, "source": counter.source}


def available(device: str) -> str:
    """For `onnxport doctor`: the meter's source, or "not measurable here" with the reason."""
    counter = meter(device)
    return f"not measurable here: {counter}" if isinstance(counter, str) else counter.source


class Rapl:
    """Running Average Power Limit counters of the processor packages and their memory, through Linux's powercap.

    Each counts microjoules from 0 to max_energy_range_uj and begins anew.
    """

    def __init__(self, zones: list[Path]) -> None:
        self.source = "RAPL " + ", ".join(_text(zone / "name") for zone in zones)
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
        self._last = self._read()
        self._total = 0

    def joules(self) -> float:
        """Joules since the meter was made."""
        now = self._read()
        steps = (after - before for before, after in zip(self._last, now, strict=True))
        self._total += sum(step if step >= 0 else step + most for step, most in zip(steps, self._ranges, strict=True))
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int(_text(file)) for file in self._files]


def rapl(folder: Path = POWERCAP) -> Rapl | str:
    """The counters of all packages, with their memory's; of the whole platform where there are none. Or the reason."""
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if (zone / "energy_uj").exists())
    if not zones:
        return f"{folder} holds no RAPL counters, as in most virtual machines and containers"
    try:
        names = {zone: _text(zone / "name") for zone in zones}
        packages = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
        return Rapl(packages or [zone for zone, name in names.items() if name == "psys"] or zones[:1])
    except PermissionError:
        return f"the RAPL counters in {folder} may be read by root only"
    except (OSError, ValueError) as error:
        return f"the RAPL counters in {folder} cannot be read ({error})"


class Nvml:
    """The energy counter of one GPU (NVIDIA Volta and later), in millijoules since the driver was loaded."""

    source = "NVML"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._first = self._read()

    def joules(self) -> float:
        """Joules since the meter was made."""
        return (self._read() - self._first) / 1e3

    def _read(self) -> int:
        count = ctypes.c_ulonglong()
        if error := self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(count)):
            raise OSError(f"NVML error {error}")
        return count.value


def nvml() -> Nvml | str:
    """The counter of the GPU that CUDA's first device is; or the reason."""
    try:
        library: Any = ctypes.CDLL(_NVML)
    except OSError:
        return f"{_NVML} is not installed"
    if error := library.nvmlInit_v2():
        return f"NVML does not start (error {error})"
    handle = ctypes.c_void_p()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    if visible.isdigit():
        error = library.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(handle))
    else:
        error = library.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(handle))
    if error:
        return f"NVML does not know the GPU {visible} (error {error})"
    try:
        return Nvml(library, handle)
    except OSError as failed:
        return f"the GPU does not count its energy ({failed})"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
