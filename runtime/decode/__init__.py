"""Decoding: the key/value cache, steps of a batch, the choice of tokens, and searches over them."""
