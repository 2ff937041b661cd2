"""Checkpoints that are not read as they are, quantized ones, GGUF files and adapters: each becomes a plain folder in float types."""
