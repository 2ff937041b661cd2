"""llama.cpp's logits of every position of some rows, of files that its own quantizer makes; run by language_precision.py.

    python llama_logits.py FOLDER OUT    # OUT/ids.npy int64 [rows, length] → OUT/KIND.gguf, OUT/KIND.npy float32 [rows, length, vocabulary]

FOLDER: a Llama, Qwen2 or Gemma 3 in Hugging Face's layout, with its weights in one file.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from peers.llama_cpp import write

KINDS = {"Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}


def main(source: Path, out: Path) -> None:
    """Makes the files and reads them."""
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept, or it would be freed
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    ids = np.load(out / "ids.npy")
    write(source, out / "F32.gguf", "F32")
    for kind, number in KINDS.items():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, number)
        if llama_cpp.llama_model_quantize(str(out / "F32.gguf").encode(), str(out / f"{kind}.gguf").encode(), ctypes.byref(options)):
            raise SystemExit(f"llama.cpp's quantizer cannot make {kind}")
    for kind in ("F32", *KINDS):
        np.save(out / f"{kind}.npy", np.stack([*_logits(out / f"{kind}.gguf", ids, kind == "F32")]))


def _logits(path: Path, ids: np.ndarray, whole: bool) -> Any:
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = max(512, ids.shape[1])
    if whole:  # as benchmarks/peers/llama_cpp.py says
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(ids.shape[1], 0, 1)
    for row in ids:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(row)
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.logits[i], batch.n_seq_id[i] = int(token), i, True, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        yield np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(row), vocabulary)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
