"""The build of a bundle: the order of the stages, from a source to checked variants."""

from onnxport.build.stages import add_variant, build

__all__ = ["add_variant", "build"]
