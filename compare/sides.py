"""The sides that onnxport brings: a bundle's variant through the runtime, and the original in PyTorch."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxport.errors import ParityError


class Answering:
    """What both sides do alike with `model`, which has the methods of a Model for its task."""

    model: Any = None

    def encode(self, inputs: list[Any], **options: Any) -> Any:
        """Texts -> float32 [texts, hidden]."""
        return self.model.encode(_texts(inputs), **options)

    def classify(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts, or lists of two -> {"label", "labels" (all that hold), "score" (the label's probability)}."""
        found = self.model.classify(_texts(inputs), **options)
        return [{"label": one.label, "labels": list(one.labels), "score": one.scores[one.label]} for one in found]

    def answer(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """{"question", "context"} -> {"answer", "start", "end", "score"}."""
        asked = {name: [one[name] for one in inputs] for name in ("question", "context")}
        found = self.model.answer(**asked, **options)
        return [{name: getattr(one, name) for name in ("answer", "start", "end", "score")} for one in found]

    def likelihoods(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts or lists of ids -> {"negative_log", "tokens"}; options: window, stride."""
        return [asdict(one) for one in self.model.likelihoods(inputs, **options)]

    def score(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Lists of [input, target], texts or ids -> the fields of a `Scored`; options: top."""
        found = self.model.score([given for given, _ in inputs], [target for _, target in inputs], **options)
        return [asdict(one) for one in found]

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Arrays by name in, arrays by name out."""
        outputs: dict[str, Any] = self.model.run(inputs, **options)
        return outputs


class BundleSide(Answering):
    """One variant of a bundle through `onnxport.runtime`; a `worker.Side`. Times are the worker's to take.

    path: the bundle's folder.  precision: the variant.  threads: None for all that may be used.
    """

    imports = ("numpy", "tokenizers", "onnxruntime", "onnxport.runtime")

    def __init__(self, path: str, precision: str, device: str = "cpu", threads: int | None = None) -> None:
        self.path, self.precision, self.device, self.threads = path, precision, device, threads

    def load(self) -> None:
        """Opens the bundle and its sessions. Raises BundleError, DeviceError."""
        from onnxport.runtime import load

        self.model = load(self.path, precision=self.precision, device=self.device, threads=self.threads)

    def about(self) -> dict[str, Any]:
        """device and versions."""
        import onnxruntime

        return {"device": self.device, "versions": {"onnxruntime": onnxruntime.__version__}}

    def generate(self, inputs: list[Any], batch_size: int | None = None, **options: Any) -> list[dict[str, Any]]:
        """An answer an input: {"text", "tokens", "score"}. inputs: texts or lists of token ids.  batch_size: None is all in one batch.

        Options that are not given are the model's own, but for sampling: what is drawn at random cannot be compared.
        """
        settled = {"beam": self.model.bundle.generation.search.beam, "temperature": 0.0} | options
        return [_result(result) for result in self.model.generate(inputs, batch_size=batch_size or max(1, len(inputs)), **settled)]

    def parity(self) -> dict[str, Any] | None:
        """The golden answers through this variant, on this machine and device: see `runtime.parity.replay`.

        within_bounds: whether the bounds that the manifest records hold; None where it records none. None for a bundle without golden
        answers.
        """
        from onnxport.runtime.bundle import Bundle
        from onnxport.runtime.parity import replay
        from onnxport.runtime.verify import check_bounds

        bundle = Bundle.open(self.path)
        if bundle.golden is None:
            return None
        bounds = bundle.variants[self.precision].parity.get("bounds", {})
        found: dict[str, Any] = replay(bundle, self.precision, device=self.device, threads=self.threads)
        within: bool | None = None
        if bounds:
            try:
                check_bounds(self.precision, bounds, found)
                within = True
            except ParityError:
                within = False
        return found | {"within_bounds": within}


class PyTorchSide(Answering):
    """The user's own class in PyTorch, as `onnxport.export.reference` runs it; a `worker.Side`.

    source: as `onnxport export` takes it.  threads: None for PyTorch's own choice.
    """

    imports = ("torch", "onnxport.export.reference")

    def __init__(self, source: str, threads: int | None = None) -> None:
        self.source, self.threads = source, threads

    def load(self) -> None:
        """Builds the module with its weights. Raises CheckpointError, UsageError."""
        from onnxport.export.reference import PyTorchReference

        self.model = PyTorchReference(self.source, self.threads)

    def about(self) -> dict[str, Any]:
        """device, versions and size_bytes, the bytes of the source's files (None for a factory in code)."""
        import torch

        return {"device": "cpu", "versions": {"torch": torch.__version__}, "size_bytes": _source_bytes(Path(self.source))}

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """An answer an input, all in one batch: {"text", "tokens", "score"}. inputs: texts or lists of token ids."""
        return [_result(result) for result in self.model.generate(inputs, batch_size=len(inputs), **options)]


def _source_bytes(source: Path) -> int | None:
    """What the original needs on disk: its folder's weights, once, configuration and tokenizer; None for a factory in code."""
    if not source.is_dir():
        return None
    files = [path for path in source.iterdir() if path.is_file()]
    weights = {".safetensors"} if any(path.suffix == ".safetensors" for path in files) else {".bin", ".pt", ".pth"}
    return sum(path.stat().st_size for path in files if path.suffix in weights | {".json", ".txt", ".model"})


def _texts(inputs: list[Any]) -> list[Any]:
    """Pairs, which JSON made lists, as tuples again."""
    return [tuple(one) if isinstance(one, list) else one for one in inputs]


def _result(result: Any) -> dict[str, Any]:
    """text, tokens and score of one generated answer, whether it is a dict or an object."""
    fields: dict[str, Any]
    if isinstance(result, dict):
        fields = {name: result.get(name) for name in ("text", "tokens", "score")}
    else:
        fields = {name: getattr(result, name, None) for name in ("text", "tokens", "score")}
    fields["tokens"] = [int(token) for token in fields["tokens"]]
    return fields
