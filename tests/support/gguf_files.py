"""Tiny GGUF files of language models, written with llama.cpp's own package, in block types of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from transformers.convert_slow_tokenizer import bytes_to_unicode

ROWS = 300
SIZES: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "eos_token_id": 299, "bos_token_id": 299,
                         "pad_token_id": None}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write(
    path: Path,
    model: Any,
    kinds: dict[str, Kind] | Kind,
    architecture: str = "llama",
    extra: dict[str, Any] | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """A model of `SIZES`, each weight in the type of the longest part of its name in `kinds`; vectors in F32.

    extra: more of the header. more: more tensors.
    """
    config = model.config
    arch = next(a for a, name in _architectures().items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (extra or {}).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    _add_tokenizer(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, end = name.rpartition(".")
        array = _laid_out(name, tensor.float().numpy(), config, architecture)
        kind = Kind.F32 if array.ndim == 1 else kinds if isinstance(kinds, Kind) else _kind(name, kinds)
        data = blocks(array, kind) if kind not in (Kind.F32, Kind.F16) else array.astype(np.float16 if kind == Kind.F16 else np.float32)
        writer.add_tensor(f"{names.get_name(stem)}.{end}", data, raw_dtype=kind)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(array: np.ndarray, kind: Kind) -> np.ndarray:
    """The array in blocks of a type; K-quants, which the package only reads, get random codes with scales of a usual size."""
    try:
        return quantize(array, kind)
    except NotImplementedError:
        from gguf.constants import GGML_QUANT_SIZES

        count, size = GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(array.size)
        data = rng.integers(0, 256, (*array.shape[:-1], array.shape[-1] // count, size), np.uint8)
        halves = (rng.random((*data.shape[:-1], 2)) * 1e-4 + 1e-4).astype(np.float16).view(np.uint8)
        place = {Kind.Q4_K: (0, 4), Kind.Q5_K: (0, 4), Kind.Q6_K: (208, 2), Kind.Q2_K: (80, 4), Kind.Q3_K: (108, 2)}[kind]
        data[..., place[0] : place[0] + place[1]] = halves[..., : place[1]]
        return data.reshape(*array.shape[:-1], -1)


def _architectures() -> dict[Any, str]:
    from gguf import MODEL_ARCH_NAMES

    return MODEL_ARCH_NAMES


def _kind(name: str, kinds: dict[str, Kind]) -> Kind:
    return kinds[max((part for part in kinds if part in name), key=len)]


def _laid_out(name: str, array: np.ndarray, config: Any, architecture: str) -> np.ndarray:
    """llama.cpp turns pairs that stand side by side: queries and keys of Llama are reordered, as its converter does."""
    if architecture != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return np.ascontiguousarray(array)
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return np.ascontiguousarray(array.reshape(heads, 2, len(array) // heads // 2, -1).swapaxes(1, 2).reshape(array.shape))


def _add_tokenizer(writer: GGUFWriter) -> None:
    letters = list(bytes_to_unicode().values())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "the")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    tokens += [f"<extra{i}>" for i in range(ROWS - 1 - len(tokens))] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (ROWS - 1) + [3])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(ROWS - 1)
    writer.add_eos_token_id(ROWS - 1)
    writer.add_chat_template(TEMPLATE)


def trained(config: dict[str, Any], seed: int = 0, **made: Any) -> Any:
    """A Llama of `SIZES` with random weights."""
    from support.causal_folders import make

    torch.manual_seed(seed)
    return make("llama", seed, **SIZES | config, **made)
