"""optimum-onnx: ONNX Runtime behind transformers' generate, merged decoder; float32, and dynamic int8 with a scale per channel."""

import sys
from pathlib import Path
from typing import Any

from peers import transformers


def convert(source: Path, out: Path) -> None:
    """Exports with the merged decoder, then quantizes every graph for AVX-512 VNNI as optimum's guide does."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    main_export(str(source), output=out / "fp32", task="text2text-generation-with-past", do_validation=False)
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    for graph in ("encoder_model.onnx", "decoder_model_merged.onnx"):
        quantizer = ORTQuantizer.from_pretrained(out / "fp32", file_name=graph)
        quantizer.quantize(save_dir=out / "int8", quantization_config=config, file_suffix="")
    for path in (out / "fp32").iterdir():
        if path.suffix in (".json", ".spm") and not (out / "int8" / path.name).exists():
            (out / "int8" / path.name).write_bytes(path.read_bytes())


class Peer(transformers.Peer):
    """The merged decoder in ONNX Runtime; a `worker.Side`."""

    imports = ("torch", "transformers", "transformers.models.marian", "onnxruntime", "optimum.onnxruntime")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        super().__init__(str(Path(folder) / precision), precision, threads)

    def build(self) -> Any:
        """The exported model of the precision."""
        import onnxruntime
        from optimum.onnxruntime import ORTModelForSeq2SeqLM

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return ORTModelForSeq2SeqLM.from_pretrained(self.folder, use_merged=True, session_options=options)

    def about(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return {"versions": {name: version(name) for name in ("optimum-onnx", "onnxruntime", "transformers", "torch")}}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
