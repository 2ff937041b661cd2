"""KServe's open inference protocol: tensors in, tensors out, as JSON or with the binary extension."""
