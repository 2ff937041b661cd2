"""The runtime's handling of texts around the original of an encoder."""

from collections.abc import Mapping

import numpy as np
import torch

from onnxport.export.guard import evaluating
from onnxport.export.models import EncoderModel
from onnxport.runtime.encode import Encoder as TextEncoder
from onnxport.runtime.reading import encoding
from onnxport.runtime.tokenizer import TextTokenizer


class OriginalText(TextEncoder):
    """The runtime's way from texts to answers around the original of an encoder."""

    def __init__(self, model: EncoderModel, task: str, tokenizer: TextTokenizer | None) -> None:
        self.task, self._tokenizer, self._model = task, tokenizer, model
        self.config = encoding(model.reading())
        self.inputs = dict.fromkeys(["input_ids", "attention_mask"] + ["token_type_ids"] * (model.types > 0))
        self.outputs = dict(model.outputs)

    def _type(self, name: str) -> str:
        return "int64"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by name in and out."""
        with evaluating(*self._model.modules, fused=True):
            found = self._model.answer({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()})
            return {name: tensor.numpy() for name, tensor in found.items()}
