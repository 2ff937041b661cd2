"""Graphs for targets other than the CPU, made from graphs that were fused for it."""
