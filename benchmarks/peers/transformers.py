"""transformers on PyTorch, eager, float32, with its own cache; also the base of peers that answer through the same classes."""

import json
import sys
from pathlib import Path
from typing import Any


def kind_of(folder: Path) -> str:
    """seq2seq, causal or encoder, by the type that config.json names."""
    found: str = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    return {"marian": "seq2seq", "bert": "encoder"}.get(found, "causal")


def convert(source: Path, out: Path) -> None:
    """Nothing to make but a link: transformers reads the folder itself."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.symlink_to(source.resolve(), target_is_directory=True)


class Peer:
    """The model's own class; a `worker.Side`."""

    imports: tuple[str, ...] = ("torch", "numpy", "transformers", "peers.pooling")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.folder, self.precision, self.threads = Path(folder), precision, threads
        self.kind = kind_of(self.folder)
        if self.kind == "seq2seq":
            self.imports = (*self.imports, "transformers.models.marian")

    def load(self) -> None:
        """Model and tokenizer."""
        import torch
        from transformers import AutoTokenizer, MarianTokenizer, logging

        logging.set_verbosity_error()
        torch.set_num_threads(self.threads)
        self.torch = torch
        self.tokenizer = (MarianTokenizer if self.kind == "seq2seq" else AutoTokenizer).from_pretrained(self.folder)
        self.tokenizer.padding_side = "left" if self.kind == "causal" else "right"
        self.model = self.build()

    def build(self) -> Any:
        """A model with transformers' `generate`, or an encoder."""
        from transformers import AutoModel, AutoModelForCausalLM, MarianMTModel

        classes: dict[str, Any] = {"seq2seq": MarianMTModel, "causal": AutoModelForCausalLM, "encoder": AutoModel}
        return classes[self.kind].from_pretrained(self.folder).eval()

    def about(self) -> dict[str, Any]:
        """Versions."""
        import transformers

        return {"versions": {"transformers": transformers.__version__, "torch": self.torch.__version__}}

    def generate(
        self, inputs: list[Any], max_new_tokens: int, min_new_tokens: int = 0, beam: int = 1, batch_size: int | None = None
    ) -> list[dict[str, Any]]:
        """Batches of `batch_size` inputs of like lengths, None is all at once; answers in the order of the inputs."""
        from peers.pooling import batches

        ids = [self.tokenizer(one).input_ids if isinstance(one, str) else one for one in inputs]
        answers: dict[int, dict[str, Any]] = {}
        for rows in batches(list(map(len, ids)), batch_size):
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
            prompt = batch["input_ids"].shape[1] if self.kind == "causal" else 1
            answers |= zip(rows, map(self._answer, found[:, prompt:].tolist()), strict=True)
        return [answers[i] for i in range(len(ids))]

    def _answer(self, tokens: list[int]) -> dict[str, Any]:
        end = self.tokenizer.eos_token_id
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        return {"text": self.tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens}

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """input_ids, attention_mask and perhaps token_type_ids, int64 [batch, length] -> last_hidden_state."""
        with self.torch.inference_mode():
            found = self.model(**{name: self.torch.from_numpy(array) for name, array in inputs.items()})
        return {"last_hidden_state": found.last_hidden_state.numpy()}

    def encode(self, inputs: list[str], batch_size: int | None = None) -> Any:
        """Texts -> the mean of each over its tokens, [texts, hidden]; batches of texts of like lengths."""
        import numpy

        from peers.pooling import batches, feeds, mean

        ids = self.tokenizer(inputs).input_ids
        answers = [numpy.empty(0)] * len(ids)
        for rows in batches(list(map(len, ids)), batch_size):
            arrays = feeds([ids[i] for i in rows], self.tokenizer.pad_token_id)
            for i, vector in zip(rows, mean(self.run(arrays)["last_hidden_state"], arrays["attention_mask"]), strict=True):
                answers[i] = vector
        return numpy.stack(answers)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
