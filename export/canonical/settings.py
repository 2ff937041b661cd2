"""Settings of a canonical Transformer: its layers and their stacks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer: which linear parts carry a bias follows the source's weights (`biases`: canonical parameter names that exist).

    kv_heads: of keys and values, as many as `heads` by default. head: the true size of one. rotary: positions turn queries and keys, whose
    halves are then padded apart. scale: of scores, 1 / sqrt(head) by default. qk_eps: of RMS norms of each head's queries and keys.
    window: positions that a query sees, its own the last; None for all. relations: see RelativeAttention.
    """

    heads: int
    inner: int
    activation: str
    norm_first: bool
    eps: tuple[float, ...]  # one per norm, in the order of use
    biases: frozenset[str]
    head: int
    kv_heads: int = 0
    norm: str = "layer"
    gated: bool = False
    rotary: bool = False
    scale: float | None = None
    qk_eps: float | None = None
    window: int | None = None
    relations: bool = False

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)

    @property
    def size(self) -> int:
        """The head size that kernels take: a multiple of 8, and so is each half where positions turn them."""
        return 2 * _padded(-(-self.head // 2)) if self.rotary else _padded(self.head)

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head**-0.5 if self.scale is None else self.scale


def _padded(size: int) -> int:
    """The next multiple of 8: what GroupQueryAttention needs."""
    return (size + 7) // 8 * 8


@dataclass(frozen=True)
class Stack:
    """Layers with an optional norm of what enters them and an optional final one.

    cross: whether each layer attends to a memory. types: token types with an embedding each, 0 for none. rotary: positions of the
    tables that turn queries and keys, 0 for none. relative: entries of the table of biases by distance, 0 for none. distances: positions of
    the table of encoded distances, 0 for none. padding: an id without a position of its own, see `counted_positions`; None: all have one.
    """

    hidden: int
    layers: tuple[Layer, ...]
    cross: bool
    final_eps: float | None
    final_bias: bool = True
    embedding_eps: float | None = None
    types: int = 0
    rotary: int = 0
    relative: int = 0
    distances: int = 0
    padding: int | None = None


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
