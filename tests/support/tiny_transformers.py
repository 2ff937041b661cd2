"""The tiny model as one that transformers can generate with: its `generate` is the reference for the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from support import tiny_bundles as tiny


class TheirConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.vocab_size, self.num_hidden_layers, self.max_position_embeddings = tiny.VOCABULARY, tiny.LAYERS, tiny.POSITIONS


class TheirModel(PreTrainedModel, GenerationMixin):
    """A causal tiny model: every step reads the whole sequence again."""

    config_class = TheirConfig
    main_input_name = "input_ids"

    def __init__(self, model: tiny.TinyModel) -> None:
        super().__init__(TheirConfig())
        self.model, self.unused = model, torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass

    def forward(self, input_ids: torch.Tensor, **rest: Any) -> CausalLMOutput:
        rows = [self.model.logits([], row) for row in input_ids.tolist()]
        return CausalLMOutput(logits=torch.from_numpy(np.stack(rows)))

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *rest: Any, attention_mask: Any = None, **more: Any
    ) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


def generate(model: TheirModel, prompt: list[int], **options: Any) -> Any:
    """What `generate` returns for one prompt, scores and logits with it."""
    return model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), pad_token_id=tiny.PAD, use_cache=False,
        return_dict_in_generate=True, output_scores=True, output_logits=True, **options,
    )  # fmt: skip
