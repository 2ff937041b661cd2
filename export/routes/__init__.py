"""The routes from a source to graphs: canonical, direct, direct for encoders, and ONNX files."""
