"""PyTorch's own Transformer as sides of the canonical model."""

from torch import Tensor, nn

from onnxport.export.families.loading import Side
from onnxport.export.families.pytorch_modules import read_stack
from onnxport.export.families.pytorch_names import TABLE


def side(
    stack: nn.TransformerEncoder | nn.TransformerDecoder,
    path: str,
    tokens_path: str,
    tokens: Tensor,
    positions: Tensor | None,
    scale: float,
) -> Side:
    """An encoder or decoder called `path`, with the tables in front of it."""
    named = None if positions is None else ("positions", positions)
    state = dict(stack.named_parameters(remove_duplicate=False))  # layers may share their weights
    norms = {} if stack.norm is None else {"norm": "norm"}
    return Side(read_stack(stack, path), TABLE, path, state, (tokens_path, tokens), named, scale, norms)
