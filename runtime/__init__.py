"""The thin runtime: loads a bundle and answers from it. Imports neither torch nor onnx."""
