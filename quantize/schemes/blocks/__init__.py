"""Weights of 8 or 4 bits in blocks: their grids, how weights are rounded to them, and codes that a checkpoint brings."""
