"""onnxport: from a PyTorch Transformer to an application on ONNX Runtime."""

__version__ = "0.1.0"
