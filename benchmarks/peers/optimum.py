"""optimum-onnx: ONNX Runtime behind transformers' classes, decoders merged; float32, and dynamic int8 with a scale per channel."""

import sys
from pathlib import Path
from typing import Any

from peers import transformers

TASKS = {"seq2seq": "text2text-generation-with-past", "causal": "text-generation-with-past", "encoder": "feature-extraction"}
GRAPHS = {"seq2seq": ("encoder_model.onnx", "decoder_model_merged.onnx"), "causal": ("model.onnx",), "encoder": ("model.onnx",)}


def convert(source: Path, out: Path) -> None:
    """Exports, then quantizes every graph for AVX-512 VNNI as optimum's guide does."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    kind = transformers.kind_of(source)
    main_export(str(source), output=out / "fp32", task=TASKS[kind], do_validation=False)
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    for graph in GRAPHS[kind]:
        quantizer = ORTQuantizer.from_pretrained(out / "fp32", file_name=graph)
        quantizer.quantize(save_dir=out / "int8", quantization_config=config, file_suffix="")
    for path in (out / "fp32").iterdir():
        if path.suffix in (".json", ".spm", ".txt") and not (out / "int8" / path.name).exists():
            (out / "int8" / path.name).write_bytes(path.read_bytes())


class Peer(transformers.Peer):
    """The exported model in ONNX Runtime; a `worker.Side`."""

    imports = (*transformers.Peer.imports, "onnxruntime", "optimum.onnxruntime")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        super().__init__(str(Path(folder) / precision), precision, threads)

    def build(self) -> Any:
        """The exported model of the precision."""
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForFeatureExtraction, ORTModelForSeq2SeqLM

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        if self.kind == "encoder":
            return ORTModelForFeatureExtraction.from_pretrained(self.folder, session_options=options)
        if self.kind == "causal":
            return ORTModelForCausalLM.from_pretrained(self.folder, session_options=options)
        return ORTModelForSeq2SeqLM.from_pretrained(self.folder, use_merged=True, session_options=options)

    def about(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return {"versions": {name: version(name) for name in ("optimum-onnx", "onnxruntime", "transformers", "torch")}}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
