"""The schemes that a weight can be quantized by, a file each, and their application to a graph."""
