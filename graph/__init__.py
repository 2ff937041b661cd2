"""ONNX graphs as values: questions, edits, storage and sessions, for export and quantize alike."""
