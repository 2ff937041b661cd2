"""The order of the stages, from a source to a bundle."""

from onnxport.build.stages import add_variant, build

__all__ = ["add_variant", "build"]
