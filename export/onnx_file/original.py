"""Golden answers of an ONNX file: the file as it came, run by ONNX Runtime without any optimization.

On processors without VNNI it is optimized, for only so does ONNX Runtime add products of 8 bits without loss there (see
onnxport.runtime.processor).
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxport.errors import BundleError, CheckpointError, one_line
from onnxport.export.onnx_file.inputs import Arrays, GraphInput, arrays, batches, sizes, tied
from onnxport.graph.session import open_file
from onnxport.graph.store import write
from onnxport.progress import Progress

TIED = (0, 1, 2)  # how many leading axes all inputs share, tried in this order
HALF_ERROR = 3e-2  # of a half-precision file against itself in float32, relative


class Original:
    """A file that ONNX Runtime runs. CheckpointError when it cannot load it."""

    def __init__(self, path: Path, name: Path) -> None:
        try:
            self.runner = open_file(path, optimize=False)
        except BundleError as error:
            raise CheckpointError(f"{name} cannot be run by ONNX Runtime: {one_line(error, deepest=True)}") from error

    @classmethod
    def widened(cls, model: ir.Model, name: Path) -> Original:
        """Of a half-precision file: the same nodes in float32."""
        with tempfile.TemporaryDirectory() as folder:
            (file,) = write({"model": model}, folder).values()
            return cls(Path(folder) / file, name)

    def answer(self, inputs: Arrays) -> Arrays:
        """Outputs by name. Whatever ONNX Runtime raises goes through."""
        return next(self.runner.run([inputs]))


def goldens(original: Original, inputs: list[GraphInput], progress: Progress) -> Arrays:
    """`case{i}/in/...` and `case{i}/out/...` at several sizes of the free axes.

    CheckpointError: it runs at none, or its answers are not finite, change from run to run, or are no arrays of numbers.
    """
    inputs, first = _runnable(original, inputs)
    found = first
    for size in sizes(inputs)[1:]:
        try:
            feed = arrays(inputs, size, len(found))
            case = f"case{len({name.split('/')[0] for name in found})}"
            found = found | _case(case, feed, original.answer(feed))
        except CheckpointError as problem:
            progress(f"leaving out golden answers at {size}: {problem}")
        except Exception as error:  # a size the graph itself does not take is no golden
            progress(f"leaving out golden answers at {size}: {one_line(error, 120)}")
    if not any(name.startswith("case0/out/") and array.size for name, array in found.items()):
        raise CheckpointError("the model answers nothing; export it with the outputs that are wanted")
    return found


def _runnable(original: Original, inputs: list[GraphInput]) -> tuple[list[GraphInput], Arrays]:
    """The inputs with their axes named so that the model runs, and the first case.

    A batch of 1 comes last: TorchScript exporters bake the batch of their example into some graphs that declare it free.
    """
    reasons: list[str] = []
    for single, count in itertools.product((False, True), TIED):
        named = tied(inputs, count) if count else inputs
        begin = sizes(named)[0]
        feed = arrays(named, begin | dict.fromkeys(batches(named), 1) if single else begin, 0)
        try:
            answer, again = original.answer(feed), original.answer(feed)
        except Exception as error:  # ONNX Runtime's errors share no base class
            reasons.append(one_line(error))
            continue
        case = _case("case0", feed, answer)
        for name, array in answer.items():
            if not np.array_equal(array, again[name]):
                raise CheckpointError(f"output {name} is another each time the model runs; export it in eval mode, without random numbers")
        return named, case
    raise CheckpointError(f"the model does not run on inputs as it declares them, export it with axes that are free: {reasons[0]}")


def _case(case: str, feed: Arrays, answer: dict[str, Any]) -> Arrays:
    for name, array in answer.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise CheckpointError(f"output {name} is no tensor of numbers; export the model with tensors alone")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"the model answers NaN or infinity in {name}; check its weights")
    return {f"{case}/in/{name}": array for name, array in feed.items()} | {f"{case}/out/{name}": array for name, array in answer.items()}
