"""Model repositories of NVIDIA's Triton Inference Server, made of bundles."""
