"""What a canonical Transformer is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer: which linear parts carry a bias follows the source's weights (`biases`: canonical parameter names that exist)."""

    heads: int
    inner: int
    activation: str
    norm_first: bool
    eps: tuple[float, ...]  # one per norm, in the order of use
    biases: frozenset[str]


@dataclass(frozen=True)
class Stack:
    """Layers with an optional norm of what enters them and an optional final one; `cross`: whether each layer attends to a memory."""

    hidden: int
    layers: tuple[Layer, ...]
    cross: bool
    final_eps: float | None
    final_bias: bool = True
    embedding_eps: float | None = None


def skip_norms(stack: Stack, summed: bool) -> int:
    """How many layer norms of a stack directly follow an addition (each fuses into SkipLayerNormalization); `summed`: the stack's input is
    itself a sum of two tensors of one shape, token and position embeddings."""
    count, after_sum = 0, summed
    if stack.embedding_eps is not None:
        count, after_sum = int(summed), False
    for layer in stack.layers:
        for _ in range(3 if stack.cross else 2):
            # pre-norm: norm, block, add; post-norm: block, add, norm
            count += after_sum if layer.norm_first else 1
            after_sum = layer.norm_first
    return count + (after_sum if stack.final_eps is not None else 0)
