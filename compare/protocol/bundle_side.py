"""The side of a bundle's variant, which answers through the runtime."""

from typing import Any

from onnxport.compare.protocol.messages import AnsweringSide, generated_answer
from onnxport.errors import ParityError


class BundleSide(AnsweringSide):
    """One variant of a bundle through `onnxport.runtime`. Times are the worker's to take.

    path: the bundle's folder.  precision: the variant.  threads: None for all that may be used.  draft: a variant that guesses for it.
    """

    imports = ("numpy", "tokenizers", "onnxruntime", "onnxport.runtime")

    def __init__(self, path: str, precision: str, device: str = "cpu", threads: int | None = None, draft: str | None = None) -> None:
        self.path, self.precision, self.device, self.threads, self.draft = path, precision, device, threads, draft

    def load(self) -> None:
        """Opens the bundle and its sessions. Raises BundleError, DeviceError."""
        from onnxport.runtime import load

        self.model = load(self.path, precision=self.precision, device=self.device, threads=self.threads, draft=self.draft)

    def about(self) -> dict[str, Any]:
        """device and versions."""
        import onnxruntime

        return {"device": self.device, "versions": {"onnxruntime": onnxruntime.__version__}}

    def generate(self, inputs: list[Any], batch_size: int | None = None, **options: Any) -> list[dict[str, Any]]:
        """An answer an input: {"text", "tokens", "score"}. inputs: texts or lists of token ids.  batch_size: None is all in one batch.

        With a draft, also "made", the tokens with the end of the answer, the "passes" that gave them, and how many tokens were "guessed"
        and "accepted".
        Options that are not given are the model's own, but for sampling: what is drawn at random cannot be compared.
        """
        settings = {"beam": self.model.bundle.generation.search.beam, "temperature": 0.0} | options
        results = self.model.generate(inputs, batch_size=batch_size or max(1, len(inputs)), **settings)
        return [generated_answer(result) | (_guesses(result) if self.draft else {}) for result in results]

    def parity(self) -> dict[str, Any] | None:
        """The golden answers through this variant, on this machine and device: see `runtime.verify.replay`.

        within_bounds: whether the bounds that the manifest records hold; None where it records none. None for a bundle without golden
        answers.
        """
        from onnxport.runtime.bundle.reader import Bundle
        from onnxport.runtime.verify import check_bounds, replay

        bundle = Bundle.open(self.path)
        if bundle.golden is None:
            return None
        bounds = bundle.variants[self.model.precision].parity.get("bounds", {})
        differences: dict[str, Any] = replay(bundle, self.model.precision, device=self.device, threads=self.threads)
        within: bool | None = None
        if bounds:
            try:
                check_bounds(self.model.precision, bounds, differences)
                within = True
            except ParityError:
                within = False
        return differences | {"within_bounds": within}


def _guesses(result: Any) -> dict[str, int]:
    made = len(result.tokens) + (result.finish_reason == "eos")
    return {"made": made, "passes": result.passes or made, "guessed": result.guessed, "accepted": result.accepted}
