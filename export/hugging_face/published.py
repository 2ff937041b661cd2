"""Config.json files that were written for a folder's own code, which transformers has taken over since: as its own class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import named_class
from onnxport.export.hugging_face import generation_settings
from onnxport.export.hugging_face.config_keys import IGNORED
from onnxport.export.transformers_library import import_transformers, quiet, unread_keys

KEY = "auto_map"
CONFIG = "AutoConfig"


@dataclass(frozen=True)
class Keys:
    """Keys that transformers' class calls otherwise. renamed: old → new; values: of some, old → new; fixed: what its class always does.

    unread: of training, speed, or heads that are not there.
    """

    renamed: Mapping[str, str]
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


# model_type → keys of its first code
OLDER: dict[str, Keys] = {
    "nomic_bert": Keys(
        renamed={
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
            "rotary_emb_base": "rope_theta",
        },
        values={"activation_function": {"swiglu": "silu"}},
        fixed={
            "activation_function": ("swiglu",),
            "causal": (False,),
            "mlp_fc1_bias": (False,),
            "mlp_fc2_bias": (False,),
            "num_experts": (0, None),
            "moe_every_n_layers": (0, None),
            "parallel_block": (False,),
            "parallel_block_tied_norm": (False,),
            "prenorm": (False,),
            "qkv_proj_bias": (False,),
            "rotary_emb_fraction": (1.0,),
            "rotary_emb_interleaved": (False,),
            "rotary_emb_scale_base": (None,),
            "rotary_scaling_factor": (None,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
            "use_rms_norm": (False, None),
        },
        unread=frozenset(
            """attn_pdrop dense_seq_output embd_pdrop fused_bias_fc fused_dropout_add_ln max_trained_positions pad_vocab_size_multiple
            reorder_and_upcast_attn resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels summary_type
            summary_use_proj use_flash_attn use_xentropy""".split()
        ),
    )
}


def taken_over(config: Mapping[str, Any]) -> bool:
    """Whether transformers has classes of its own under all the names that a config.json's `auto_map` has for what it describes."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    references, model_type, named = config.get(KEY), config.get("model_type"), named_class(config)
    if not isinstance(references, Mapping) or not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return False
    with quiet():
        own = CONFIG_MAPPING[model_type].__name__
        there = isinstance(named, str) and hasattr(import_transformers(), named)
    names = [str(value).rpartition(".")[2] for key, value in references.items() if key != CONFIG]
    stated = str(references.get(CONFIG, own)).rpartition(".")[2]
    return there and stated == own and (named in names or not names)


def as_its_own(config: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config.json whose code transformers has taken over, as transformers' own class reads it, and what to say of it.

    CheckpointError: the older code does something that its class does not, or its class does not read a key that may matter.
    """
    model_type = str(config["model_type"])
    keys = OLDER.get(model_type, Keys({}))
    keys = keys if keys.renamed.keys() & config.keys() else Keys({})
    found = {keys.renamed.get(key, key): _value(keys, key, value) for key, value in config.items()}
    problems = [
        f"{key} is {config[key]!r:.40}, expected {' or '.join(map(repr, values))}"
        for key, values in keys.fixed.items()
        if key in config and config[key] not in values
    ]
    passed = {KEY, *keys.unread, *(keys.fixed.keys() - keys.renamed.keys())}
    found = {key: value for key, value in found.items() if key not in passed}
    stated = {key for key, value in found.items() if value not in (*generation_settings.NEUTRAL, 0)}  # what is off there is not here
    if unread := sorted(unread_keys(model_type, stated - IGNORED - generation_settings.KNOWN)):
        problems.append(f"{', '.join(unread)} not read by transformers' own class")
    if problems:
        what = f"{where} names the folder's own code ({KEY}), and is not for transformers' class alone"
        raise CheckpointError(f"{what}: {'; '.join(problems)}; --allow-remote-code runs the code: read it first")
    return found, (f"the folder's own code ({KEY}) is not run: transformers has it as {named_class(config)}",)


def _value(keys: Keys, key: str, value: Any) -> Any:
    return keys.values.get(key, {}).get(value, value) if isinstance(value, str) else value
