"""CUDA without a device: libraries of CUDA's names for onnxruntime-gpu, whose memory is the host's and whose kernels do nothing.

ONNX Runtime's CUDA provider loads over them, places every node of a graph, plans its copies, allocates, binds and runs as it does on a GPU;
what its kernels would write stays as it was. So placement, shapes, bindings and caches can be tested, and no number.
"""
