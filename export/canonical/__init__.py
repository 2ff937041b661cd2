"""The canonical Transformer: one small readable model that takes a cached step, and its weights."""
