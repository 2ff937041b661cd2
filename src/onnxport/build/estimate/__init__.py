"""What an export would write and take, from config.json and the headers of the weights alone: `onnxport export --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxport.build.estimate import costs, folder, shared, variants
from onnxport.build.estimate.room import check_room
from onnxport.build.request import BuildOptions
from onnxport.build.request import variants as variants_of
from onnxport.quantize.precisions import DEFAULT
from onnxport.runtime.bundle.variant_names import CPU

__all__ = ["Estimate", "check_room", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """files: path in the bundle → bytes. parameters: that the bundle holds. memory: the most anonymous memory. disk: the most at any time.
    seconds: of this machine, if nothing else runs; within a factor of two or so."""

    files: dict[str, int]
    parameters: int
    memory: int
    disk: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"bytes": sum(self.files.values())}


def estimate(
    source: Any,
    precisions: Sequence[str] | None = None,
    targets: Sequence[str] = (CPU,),
    *,
    task: str | None = None,
    allow_pickle: bool = False,
) -> Estimate:
    """Of a folder of Hugging Face: a language model, an encoder of texts or an encoder-decoder, in safetensors or, with `allow_pickle`, in
    a pickle.

    Raises:
        UsageError: the source is another; a precision is not known. CheckpointError: files are missing or damaged.
    """
    names, _ = variants_of(precisions or DEFAULT, targets)
    BuildOptions(names).check()
    found = folder.read(source, allow_pickle, task)
    files = shared.files(found) | variants.files(names, found)
    return Estimate(
        files=files,
        parameters=found.parameters,
        memory=costs.memory(names, found, files),
        disk=costs.disk(names, found, files),
        seconds=costs.seconds(names, found),
    )
