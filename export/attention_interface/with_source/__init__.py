"""Decoders that read a source beside their own tokens, and the two graphs of an encoder-decoder."""
