"""Attention and what belongs to it: heads, rotary positions, windows of positions."""
