"""onnxruntime-genai: models made by its own builder from the same folder; float32, and int4 in blocks of 32 and of 128."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# accuracy_level 4: activations are quantized too, by far its fastest way on a processor.
BUILDS = {
    "fp32": ["-p", "fp32"],
    "int4-32": ["-p", "int4", "--extra_options", "block_size=32", "accuracy_level=4"],
    "int4-128": ["-p", "int4", "--extra_options", "block_size=128", "accuracy_level=4"],
}


def convert(source: Path, out: Path) -> None:
    """A folder a precision."""
    out = out.resolve()
    for precision, options in BUILDS.items():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-c", str(out / "cache")]
        # Elsewhere: here a module of this folder would stand in the way of the library of the same name.
        subprocess.run([*builder, "-m", str(source), "-o", str(out / precision), *options], check=True, cwd=source)


class Peer:
    """One of its models; a `worker.Side`."""

    imports = ("numpy", "onnxruntime_genai")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.folder, self.threads = Path(folder) / precision, threads

    def load(self) -> None:
        """Opens the model with so many threads of an operator."""
        import onnxruntime_genai

        self.library = onnxruntime_genai
        config = onnxruntime_genai.Config(str(self.folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": self.threads}}}}))
        self.model = onnxruntime_genai.Model(config)

    def about(self) -> dict[str, Any]:
        """Version."""
        from importlib.metadata import version

        return {"versions": {"onnxruntime-genai": version("onnxruntime-genai"), "onnxruntime": version("onnxruntime")}}

    def generate(self, inputs: list[list[int]], max_new_tokens: int, min_new_tokens: int = 0, beam: int = 1) -> list[dict[str, Any]]:
        """Rows of ids of one length, all in one batch."""
        import numpy

        if beam != 1 or len({len(row) for row in inputs}) != 1:
            raise ValueError("this side decodes greedily, rows of one length")
        prompt = len(inputs[0])
        params = self.library.GeneratorParams(self.model)
        lengths = {"min_length": prompt + min_new_tokens, "max_length": prompt + max_new_tokens}
        params.set_search_options(batch_size=len(inputs), do_sample=False, **lengths)
        generator = self.library.Generator(self.model, params)
        generator.append_tokens(numpy.array(inputs, numpy.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [{"text": None, "tokens": generator.get_sequence(i)[prompt:].tolist()} for i in range(len(inputs))]


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
