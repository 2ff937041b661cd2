"""CTranslate2: https://opennmt.net/CTranslate2. Batches of a call are sorted by length in the engine; scores are not asked for."""

import json
import sys
from pathlib import Path
from typing import Any

PRECISIONS = {"fp32": "float32", "int8": "int8"}
MARIAN = ["source.spm", "target.spm", "vocab.json"]


def convert(source: Path, out: Path) -> None:
    """One model a compute type, so that memory and start-up are those of the precision asked for."""
    from ctranslate2.converters import TransformersConverter

    copied = MARIAN if (source / MARIAN[0]).exists() else []
    for precision, kind in PRECISIONS.items():
        TransformersConverter(str(source), copy_files=copied).convert(str(out / precision), quantization=kind, force=True)


class Peer:
    """One compute type; a `worker.Side`. Answers of language models are ids alone."""

    imports: tuple[str, ...] = ("ctranslate2",)

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.folder, self.precision, self.threads = Path(folder) / precision, precision, threads
        self.causal = not (self.folder / MARIAN[0]).exists()
        if not self.causal:
            self.imports = ("ctranslate2", "sentencepiece", "peers.texts")

    def load(self) -> None:
        """Opens the model with all threads in one replica, as latency and memory want it."""
        import ctranslate2

        options: dict[str, Any] = {"device": "cpu", "compute_type": PRECISIONS[self.precision], "inter_threads": 1}
        make = ctranslate2.Generator if self.causal else ctranslate2.Translator
        self.engine = make(str(self.folder), intra_threads=self.threads, **options)
        if self.causal:
            self.pieces = json.loads((self.folder / "vocabulary.json").read_text(encoding="utf-8"))
        else:
            from peers.texts import Marian

            self.tokenizer = Marian(self.folder)

    def about(self) -> dict[str, Any]:
        """Version, and the compute type that the engine really took."""
        import ctranslate2

        return {"versions": {"ctranslate2": ctranslate2.__version__}, "compute_type": self.engine.compute_type}

    def generate(
        self,
        inputs: list[Any],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        beam: int = 1,
        batch_size: int | None = None,
        batch_type: str = "examples",
    ) -> list[dict[str, Any]]:
        """batch_size: examples or (padded) tokens that decode together, as batch_type says; None is all."""
        options: dict[str, Any] = {"max_batch_size": batch_size or 0, "batch_type": batch_type, "beam_size": beam}
        if self.causal:
            prompts = [[self.pieces[i] for i in ids] for ids in inputs]
            lengths = {"min_length": min_new_tokens, "max_length": max_new_tokens, "include_prompt_in_result": False}
            found = self.engine.generate_batch(prompts, **options, **lengths)
            return [{"text": None, "tokens": list(result.sequences_ids[0])} for result in found]
        lengths = {"min_decoding_length": min_new_tokens, "max_decoding_length": max_new_tokens}
        results = self.engine.translate_batch(self.tokenizer.encode(inputs), **options, **lengths)
        answers = [result.hypotheses[0] for result in results]
        ids = self.tokenizer.ids
        return [{"text": self.tokenizer.decode(pieces), "tokens": [ids[piece] for piece in pieces]} for pieces in answers]


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
