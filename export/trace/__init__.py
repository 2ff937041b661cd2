"""Tracing a PyTorch module to a standard ONNX graph."""
