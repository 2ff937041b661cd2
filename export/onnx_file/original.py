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
from onnxport.export.onnx_file.inputs import Arrays, GraphInput, arrays, batches, polarities, sizes, tied
from onnxport.export.onnx_file.read import with_data
from onnxport.graph.session import open_file
from onnxport.graph.store import write
from onnxport.progress import Progress

TIED = (0, 1, 2)  # how many leading axes all inputs share, tried in this order
HALF_ERROR = 3e-2  # of a half-precision file against itself in float32, relative


class NotFinite(CheckpointError):
    """An answer holds NaN or infinity."""


class Original:
    """A file that ONNX Runtime runs. CheckpointError when it cannot load it."""

    def __init__(self, path: Path, name: Path) -> None:
        try:
            self.runner = open_file(path, optimize=False)
        except BundleError as error:
            raise CheckpointError(f"{name} cannot be run by ONNX Runtime: {one_line(error, deepest=True)}") from error

    @classmethod
    def of(cls, path: Path) -> Original:
        """Of a file as it came. ONNX Runtime reads no shapes and axes out of external data: such a file's are put back into the graph."""
        try:
            return cls(path, path)
        except CheckpointError:
            model = with_data(path)
            if not any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
                raise
        return cls.rewritten(model, path)

    @classmethod
    def rewritten(cls, model: ir.Model, name: Path) -> Original:
        """Of the nodes of `model`, as files of their own."""
        with tempfile.TemporaryDirectory() as folder:
            (file,) = write({"model": model}, folder, temporary=True).values()
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
    """The inputs as they run with finite answers, and the first case. A mask that hides everything makes NaN of most models: so the model
    itself tells whether true is what its masks let see, or what they hide."""
    problem: NotFinite | None = None
    for either in polarities(inputs):
        try:
            return _running(original, either)
        except NotFinite as error:
            problem = problem or error
    assert problem is not None, "the first of the polarities is always tried"
    raise problem


def _running(original: Original, inputs: list[GraphInput]) -> tuple[list[GraphInput], Arrays]:
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
            raise NotFinite(f"the model answers NaN or infinity in {name}; check its weights")
    return {f"{case}/in/{name}": array for name, array in feed.items()} | {f"{case}/out/{name}": array for name, array in answer.items()}
