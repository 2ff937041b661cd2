"""transformers on PyTorch, eager, float32, with its own cache; also the base of peers that answer through the same `generate`."""

import sys
from pathlib import Path
from typing import Any


def convert(source: Path, out: Path) -> None:
    """Nothing to make but a link: transformers reads the folder itself."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.symlink_to(source.resolve(), target_is_directory=True)


class Peer:
    """The model's own class; a `worker.Side`."""

    imports: tuple[str, ...] = ("torch", "transformers", "transformers.models.marian")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.folder, self.precision, self.threads = Path(folder), precision, threads

    def load(self) -> None:
        """Model and tokenizer."""
        import torch
        from transformers import MarianTokenizer, logging

        logging.set_verbosity_error()
        torch.set_num_threads(self.threads)
        self.torch, self.tokenizer = torch, MarianTokenizer.from_pretrained(self.folder)
        self.model = self.build()

    def build(self) -> Any:
        """Something with transformers' `generate`."""
        from transformers import MarianMTModel

        return MarianMTModel.from_pretrained(self.folder).eval()

    def about(self) -> dict[str, Any]:
        """Versions."""
        import transformers

        return {"versions": {"transformers": transformers.__version__, "torch": self.torch.__version__}}

    def generate(
        self, inputs: list[Any], max_new_tokens: int, min_new_tokens: int = 0, beam: int = 1, batch_size: int | None = None
    ) -> list[dict[str, Any]]:
        """Batches of `batch_size` inputs of like lengths, None is all at once; answers in the order of the inputs."""
        ids = [self.tokenizer(one).input_ids if isinstance(one, str) else one for one in inputs]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = batch_size or len(ids)
        answers: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            with self.torch.inference_mode():
                found = self.model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    num_beams=beam,
                    do_sample=False,
                    min_new_tokens=min_new_tokens,
                    max_new_tokens=max_new_tokens,
                )
            answers |= zip(rows, map(self._answer, found[:, 1:].tolist()), strict=True)
        return [answers[i] for i in range(len(ids))]

    def _answer(self, tokens: list[int]) -> dict[str, Any]:
        end = self.tokenizer.eos_token_id
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        return {"text": self.tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
