"""PyTorch's own Transformer, from a folder or a user's code."""
