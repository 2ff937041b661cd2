"""Plain ONNX Runtime, for encoders: a plain export, its own transformer optimizer, its own dynamic int8, a session and nothing else.

fp32 and int8 are fused by `onnxruntime.transformers.optimizer`; int8-plain is quantized without it. Weights have a scale per channel.
"""

import sys
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "int8", "int8-plain")


def convert(source: Path, out: Path) -> None:
    """A graph a precision, and the tokenizer."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from optimum.exporters.onnx import main_export

    main_export(str(source), output=out / "plain", task="feature-extraction", do_validation=False)
    plain, fused = out / "plain" / "model.onnx", out / "fp32.onnx"
    # heads and hidden size 0: found in the graph
    optimizer.optimize_model(str(plain), model_type="bert", num_heads=0, hidden_size=0, opt_level=0).save_model_to_file(str(fused))
    # Fused graphs tell no types of what their nodes make, which quantize_dynamic asks for.
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    for graph, name in ((fused, "int8"), (plain, "int8-plain")):
        quantize_dynamic(graph, out / f"{name}.onnx", per_channel=True, weight_type=QuantType.QInt8, extra_options=options)


class Peer:
    """One graph in a session; a `worker.Side`."""

    imports = ("numpy", "tokenizers", "onnxruntime", "peers.pooling")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.folder, self.precision, self.threads = Path(folder), precision, threads

    def load(self) -> None:
        """Session and tokenizer."""
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(
            str(self.folder / f"{self.precision}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.names = [one.name for one in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "plain" / "tokenizer.json"))
        self.tokenizer.no_padding()  # some pad every text to a length of their own

    def about(self) -> dict[str, Any]:
        """Version."""
        import onnxruntime

        return {"versions": {"onnxruntime": onnxruntime.__version__}}

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """input_ids, attention_mask and perhaps token_type_ids, int64 [batch, length] -> last_hidden_state."""
        import numpy

        absent = {name: numpy.zeros_like(inputs["input_ids"]) for name in self.names if name not in inputs}
        return {"last_hidden_state": self.session.run(["last_hidden_state"], inputs | absent)[0]}

    def encode(self, inputs: list[str], batch_size: int | None = None) -> Any:
        """Texts -> the mean of each over its tokens, [texts, hidden]; batches of texts of like lengths."""
        import numpy

        from peers.pooling import batches, feeds, mean

        ids = [one.ids for one in self.tokenizer.encode_batch(inputs)]
        answers = [numpy.empty(0)] * len(ids)
        for rows in batches(list(map(len, ids)), batch_size):
            inputs_by_name = feeds([ids[i] for i in rows], 0)
            for i, vector in zip(rows, mean(self.run(inputs_by_name)["last_hidden_state"], inputs_by_name["attention_mask"]), strict=True):
                answers[i] = vector
        return numpy.stack(answers)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
