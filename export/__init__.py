"""From a PyTorch Transformer to standard ONNX and golden answers."""
