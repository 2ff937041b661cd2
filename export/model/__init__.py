"""The canonical Transformer: one small readable PyTorch model that knows how to take a cached step."""
