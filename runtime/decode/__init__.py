"""Decoding: the key/value cache, steps of a batch, selection of tokens, and searches over them."""
