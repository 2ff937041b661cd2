"""The quantization and graph-fusion stage, on ONNX alone."""
