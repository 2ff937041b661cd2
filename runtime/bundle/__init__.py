"""The bundle: a folder whose bundle.json lists and hashes every file, read and written here."""

from onnxport.runtime.bundle.reader import Bundle

__all__ = ["Bundle"]
