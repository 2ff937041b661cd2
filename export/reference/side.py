"""The side of a comparison that runs the original model in PyTorch."""

from pathlib import Path
from typing import Any

from onnxport.compare.protocol.messages import AnsweringSide, generated_answer


class PyTorchSide(AnsweringSide):
    """The user's own class in PyTorch, as `onnxport.export.reference.model` runs it.

    source: as `onnxport export` takes it.  threads: None for PyTorch's own choice.
    """

    imports = ("torch", "onnxport.export.reference.model")

    def __init__(self, source: str, threads: int | None = None) -> None:
        self.source, self.threads = source, threads

    def load(self) -> None:
        """Builds the module with its weights. Raises CheckpointError, UsageError."""
        from onnxport.export.reference.model import PyTorchReference

        self.model = PyTorchReference(self.source, self.threads)

    def about(self) -> dict[str, Any]:
        """device, versions and size_bytes, the bytes of the source's files (None for a factory in code)."""
        import torch

        return {"device": "cpu", "versions": {"torch": torch.__version__}, "size_bytes": _source_bytes(Path(self.source))}

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """An answer an input, all in one batch: {"text", "tokens", "score"}. inputs: texts or lists of token ids."""
        return [generated_answer(result) for result in self.model.generate(inputs, batch_size=len(inputs), **options)]


def _source_bytes(source: Path) -> int | None:
    """Bytes that the original needs on disk: its folder's weights, once, configuration and tokenizer; None for a factory in code."""
    if not source.is_dir():
        return None
    files = [path for path in source.iterdir() if path.is_file()]
    weights = {".safetensors"} if any(path.suffix == ".safetensors" for path in files) else {".bin", ".pt", ".pth"}
    return sum(path.stat().st_size for path in files if path.suffix in weights | {".json", ".txt", ".model"})
