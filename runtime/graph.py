"""A search graph with what it reads and writes bound to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxport.errors import BundleError
from onnxport.runtime.engine import Engine
from onnxport.runtime.session import run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


class Graph:
    """One search graph with its inputs and outputs bound; host arrays are rebound where a device copied them."""

    def __init__(self, engine: Engine, name: str, values: dict[str, onnxruntime.OrtValue], arrays: dict[str, np.ndarray]) -> None:
        self._session = engine.search(name)
        self._binding = self._session.io_binding()
        self._arrays, self._copied = arrays, engine.device != "cpu"
        read, given = {i.name for i in self._session.get_inputs()}, {*values, *arrays}
        if read != given:
            raise BundleError(
                f"search graph {name!r} reads {', '.join(sorted(read))}, expected {', '.join(sorted(given))}; export the model again"
            )
        for key, value in values.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, array in arrays.items():
            self._binding.bind_ortvalue_input(key, value_of(array))

    def into(self, name: str, value: onnxruntime.OrtValue) -> None:
        """Bind an output."""
        self._binding.bind_ortvalue_output(name, value)

    def array(self, name: str, array: np.ndarray) -> None:
        """Bind another host array as an input."""
        self._arrays[name] = array
        self._binding.bind_ortvalue_input(name, value_of(array))

    def run(self) -> None:
        """Run into the bound outputs."""
        if self._copied:
            for key, array in self._arrays.items():
                self._binding.bind_ortvalue_input(key, value_of(array))
        run_bound(self._session, self._binding)
