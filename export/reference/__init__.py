"""The original model in PyTorch, behind the methods that a bundle has."""
