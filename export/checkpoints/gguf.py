"""GGUF files, llama.cpp's: config, tokenizer, chat template and weights as transformers reads them, written out as a plain folder.

transformers passes over what it does not know; here it is refused, so that no model is another one in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from onnxport.errors import CheckpointError, one_line
from onnxport.export.checkpoints import plain
from onnxport.export.source import Source
from onnxport.export.transformers_library import import_transformers, quiet, refusing
from onnxport.extras import require

EXTRA, PURPOSE = "gguf", "this GGUF file"
FREQUENCIES = "rope_freqs.weight"  # factors of Llama 3's rotary frequencies
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # in every Llama 3.1 to 3.3
# keys below the architecture's name → the config's attribute that must say the same
SAME = {
    "attention.sliding_window": "sliding_window",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
READ = frozenset(  # by transformers, or of no consequence
    """context_length block_count feed_forward_length embedding_length vocab_size rope.dimension_count rope.freq_base attention.head_count
    attention.head_count_kv attention.layer_norm_rms_epsilon attention.layer_norm_epsilon attention.causal expert_count expert_used_count
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned tensor_data_layout
    decoder_start_token_id attention.relative_buckets_count expert_feed_forward_length""".split()
)
SCALED = ("llama", "mistral", "qwen2", "qwen3")  # model types with one rotary table, whose scaling a config can say


@dataclass(frozen=True)
class Opened:
    """A plain folder of a GGUF file, and what makes its Source that of the file."""

    folder: Path
    finish: Callable[[Source], Source]


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The file as a plain folder while the context lasts. Errors: CheckpointError, UsageError (packages), OutputError."""
    reader = _reader(path)
    transformers = import_transformers()
    require("accelerate", EXTRA, PURPOSE)
    shared = patch.object(require("gguf", EXTRA, PURPOSE), "GGUFReader", lambda *_: reader)  # transformers reads the file at every step
    with plain.scratch(path, path.stem) as made, quiet(), refusing(path), shared:
        link = made.with_name("file") / f"{path.stem}.gguf"  # whatever the user's is called
        link.parent.mkdir()
        link.symlink_to(path.resolve())
        where = {"pretrained_model_name_or_path": str(link.parent), "gguf_file": link.name, "local_files_only": True}
        config = _checked_config(transformers.AutoConfig.from_pretrained(**where), reader, path)
        cls = _model_class(transformers, config, path)
        config.architectures = [cls.__name__]
        model = cls.from_pretrained(**where, config=config, dtype=torch.float32)
        _check_whole(model, reader, path)
        values = config.to_dict()
        for key in ("quantization_config", "_model_name_or_path", "dtype", "torch_dtype"):
            values.pop(key, None)
        types = sorted({tensor.tensor_type.name for tensor in reader.tensors})
        named = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        if config.tie_word_embeddings:
            named.pop("lm_head.weight", None)
        empty = made.with_name("empty")
        empty.mkdir()
        plain.write(made, empty, values, named.items())
        del model, named
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(made)
        _drop_made_up(made / "tokenizer.json", len(reader.fields["tokenizer.ggml.tokens"].data))
        notes = (f"the weights are those of the GGUF file ({', '.join(types)}), expanded to float32",)
        yield Opened(made, lambda source: plain.as_from(source, path, [path], notes, quantization=f"gguf: {', '.join(types)}"))


def _drop_made_up(path: Path, count: int) -> None:
    """Takes tokens out of a tokenizer.json that lie behind the file's own: the class that it is built by adds such."""
    if path.is_file():
        values = json.loads(path.read_bytes())
        values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < count]
        path.write_text(json.dumps(values), encoding="utf-8")


def _reader(path: Path) -> Any:
    """gguf's reader of the file. CheckpointError: it is damaged, or a part of several."""
    reader_class = require("gguf", EXTRA, PURPOSE).GGUFReader

    # Slices of a memmap cost more than all else here, and there are some for each token: the reader gets plain bytes.
    plain_bytes = property(lambda self: self._bytes, lambda self, mapped: setattr(self, "_bytes", mapped.view(np.ndarray)))
    quick = type("Reader", (reader_class,), {"data": plain_bytes})
    try:
        reader: Any = quick(str(path))
        parts = int(_value(reader, "split.count") or 1)
        reader.fields["general.architecture"].contents()
    except Exception as error:  # a damaged header can make any kind
        raise CheckpointError(f"{path} is not a whole GGUF file ({type(error).__name__}: {one_line(error)}); copy it again") from error
    if parts > 1:
        raise CheckpointError(f"{path} is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`")
    return reader


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _model_class(transformers: Any, config: Any, path: Path) -> Any:
    """transformers' language model for a config. CheckpointError where it has none."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise CheckpointError(f"{path} holds a {config.model_type}, expected a language model; give its folder of Hugging Face")
    return mapping[type(config)]


def _checked_config(config: Any, reader: Any, path: Path) -> Any:
    """transformers' config with what it does not take over of the file's own. CheckpointError lists what it cannot say."""
    architecture = _value(reader, "general.architecture")
    own = {key.removeprefix(f"{architecture}."): _value(reader, key) for key in reader.fields if key.startswith(f"{architecture}.")}
    if "attention.key_length" in own and hasattr(config, "head_dim") and config.model_type in SCALED:
        config.head_dim = int(own["attention.key_length"])
    scaling = _rotary_scaling(config, own, reader)
    problems = [f"{name} is {value!r:.40}" for name, value in own.items() if _unread(name, value, config)]
    if scaling == {}:
        problems.append(f"the rotary scaling {own.get('rope.scaling.type')!r} or {FREQUENCIES}")
    if problems:
        raise CheckpointError(
            f"{path} says what transformers does not take from a GGUF file: {'; '.join(problems[:6])}; give its folder of Hugging Face"
        )
    if scaling:
        parameters = dict(config.rope_parameters or {})
        config.rope_parameters = {"rope_theta": parameters.get("rope_theta", getattr(config, "rope_theta", 10000.0)), **scaling}
    return config


def _unread(name: str, value: Any, config: Any) -> bool:
    """Whether a key of the file may matter and the config does not say it."""
    if name in READ or name.startswith("rope.scaling.yarn_"):
        return False
    if name in SAME:
        said = getattr(config, SAME[name], None)
        if said is None and SAME[name] == "head_dim":
            said = config.hidden_size // config.num_attention_heads
        return said is None or not math.isclose(float(said), float(value), rel_tol=1e-6)
    return True


def _rotary_scaling(config: Any, own: Mapping[str, Any], reader: Any) -> dict[str, Any] | None:
    """`rope_parameters` for the file's scaling of rotary positions; None without any, {} where a config cannot say it."""
    factors = next((tensor for tensor in reader.tensors if tensor.name == FREQUENCIES), None)
    kind = own.get("rope.scaling.type", "none")
    if factors is None and kind == "none":
        return None
    if config.model_type not in SCALED or (factors is not None and kind != "none"):
        return {}
    if factors is not None:
        return _llama3(torch.tensor(factors.data), float(config.rope_parameters["rope_theta"]))
    said: dict[str, Any] = {"rope_type": kind, "factor": float(own.get("rope.scaling.factor", 1.0))}
    if kind == "linear":
        return said
    if kind == "yarn" and "rope.scaling.original_context_length" in own and not any("yarn_" in name for name in own):
        return said | {"original_max_position_embeddings": int(own["rope.scaling.original_context_length"])}
    return {}


def _llama3(factors: torch.Tensor, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, by the factors float32 [head / 2] of its frequencies; {} where they are none of it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3}
    size = 2 * len(factors)
    config = import_transformers().LlamaConfig(head_dim=size, rope_parameters={"rope_theta": theta, **said})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain_frequencies = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    return said if torch.allclose(plain_frequencies / scaled, factors, rtol=1e-4) else {}


def _check_whole(model: Any, reader: Any, path: Path) -> None:
    """CheckpointError: some of the file's tensors are in no part of the model."""
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != FREQUENCIES)
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if stored != loaded:
        raise CheckpointError(
            f"{path} holds {stored} weights and transformers' {type(model).__name__} takes {loaded}; give its folder of Hugging Face"
        )
