"""Measures the variants of a bundle against each other and against the original."""
