"""What other programs call our options and their values, for messages that name ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS = {  # of transformers, sentence-transformers, llama.cpp, vLLM, OpenAI, ONNX Runtime
    "aggregation_strategy": "aggregation",
    "assistant_model": "draft",
    "beam_size": "beam",
    "beams": "beam",
    "candidate_labels": "candidates",
    "contexts": "context",
    "device_map": "device",
    "cuda": "device",
    "dim": "truncate_dim",
    "dimensions": "truncate_dim",
    "do_sample": "temperature",
    "doc_stride": "stride",
    "docs": "documents",
    "draft_model": "draft",
    "dtype": "precision",
    "gpu": "device",
    "handle_impossible_answer": "no_answer",
    "hypothesis": "hypothesis_template",
    "input": "texts",
    "inputs": "texts",
    "intra_op_num_threads": "threads",
    "kv_cache_dtype": "kv",
    "labels": "candidates",
    "max_answer_len": "max_answer_tokens",
    "max_length": "max_new_tokens",
    "max_seq_len": "window",
    "max_tokens": "max_new_tokens",
    "min_length": "min_new_tokens",
    "min_tokens": "min_new_tokens",
    "multi_class": "multi_label",
    "n_predict": "max_new_tokens",
    "n_threads": "threads",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "normalize": "normalize_embeddings",
    "num_beams": "beam",
    "num_return_sequences": "n_best",
    "num_threads": "threads",
    "prompt_lookup_num_tokens": "lookup",
    "provider": "device",
    "providers": "device",
    "quantization": "precision",
    "quantize": "precision",
    "repeat_penalty": "repetition_penalty",
    "sentences": "texts",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "temp": "temperature",
    "top_n": "top_k",
    "topk": "top_k",
    "torch_dtype": "precision",
    "truncate_dimension": "truncate_dim",
    "use_cuda": "device",
    "use_gpu": "device",
    "variant": "precision",
}
VALUES = {
    "device": {
        "gpu": "cuda",
        "cudaexecutionprovider": "cuda",
        "nvidia": "cuda",
        "cuda:0": "cuda",
        "cpuexecutionprovider": "cpu",
        "auto": "cpu",
    },
    "precision": {
        **dict.fromkeys(("q4_0", "q4_1", "q4_k_m", "q4_k_s", "q4_k", "q4", "q4f16", "4bit", "nf4", "uint4", "awq", "bnb4"), "int4"),
        **dict.fromkeys(("q8_0", "q8", "quantized", "8bit", "uint8", "w8a8", "dynamic"), "int8"),
        **dict.fromkeys(("w8a16",), "int8-weight"),
        **dict.fromkeys(("gptq",), "int4-gptq"),
        **dict.fromkeys(("hqq",), "int4-hqq"),
        **dict.fromkeys(("static",), "int8-static"),
        **dict.fromkeys(("float16", "f16", "half", "fp16_only"), "fp16"),
        **dict.fromkeys(("float32", "f32", "float", "full", "single"), "fp32"),
        **dict.fromkeys(("bfloat16", "brain"), "bf16"),
    },
}


def hint(option: str, value: object) -> str:
    """Of a value that an option does not take, "; X is ..." where another program calls one of ours so, else ""."""
    ours = VALUES.get(option, {}).get(str(value).strip().lower())
    return "" if ours is None else f"; what others call {value} is {ours} here"


def suggestion(name: str, known: object) -> str:
    """Of an option that a call does not have, "; use X" where one of `known` is meant, else "". known: a container of names."""
    ours = OPTIONS.get(name.lower().replace("-", "_"))
    return f"; use {ours}" if ours is not None and ours in known else ""  # type: ignore[operator]


def suggesting(call: Callable[P, R]) -> Callable[P, R]:
    """The function, whose TypeError for a keyword that it does not have names the one that is meant."""
    parameters = inspect.signature(call).parameters
    names = {name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    @functools.wraps(call)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        if not takes_all:
            for name in options:
                if name not in names:
                    raise TypeError(f"{call.__qualname__}() got an unexpected keyword argument {name!r}{suggestion(name, names)}")
        return call(*arguments, **options)

    return checked
