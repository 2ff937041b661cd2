"""Encoder bundles whose answers are rows of a table, one row a token id: what merging and search make of them can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from onnxport.runtime.bundle.writer import bundle_folder

CLS, SEP = 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,?!"]
BY_TOKEN = {"embedding": "last_hidden_state", "token-classification": "logits", "fill-mask": "logits"}
OUTPUTS = {
    **{task: [name] for task, name in BY_TOKEN.items()},
    "classification": ["logits"],
    "question-answering": ["start_logits", "end_logits"],
}


def tokenizer() -> Tokenizer:
    """WordPiece of single letters, with BERT's special tokens."""
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    return made


def table(width: int, seed: int = 0) -> np.ndarray:
    """Float32 [pieces, width]."""
    return np.random.default_rng(seed).standard_normal((len(PIECES), width)).astype(np.float32)


def write(out: Path, task: str, rows: np.ndarray, **encoding: Any) -> Path:
    """A bundle that looks its tokens up in `rows`; logits of a text are the sum of its tokens, padding left out."""
    inputs = [h.make_tensor_value_info(name, T.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask", "token_type_ids")]
    constants = [numpy_helper.from_array(rows, "table"), numpy_helper.from_array(np.array([2]), "two")]
    constants += [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array(0.0, np.float32), "zero")]
    nodes = [
        h.make_node("Gather", ["table", "input_ids"], ["rows"]),
        h.make_node("Cast", ["token_type_ids"], ["types"], to=T.FLOAT),
        h.make_node("Mul", ["types", "zero"], ["nothing"]),
        h.make_node("Unsqueeze", ["nothing", "two"], ["wide"]),
        h.make_node("Add", ["rows", "wide"], ["found"]),
        h.make_node("Cast", ["attention_mask"], ["real"], to=T.FLOAT),
        h.make_node("Unsqueeze", ["real", "two"], ["mask"]),
    ]
    if task in BY_TOKEN:
        nodes.append(h.make_node("Add", ["found", "mask"], [BY_TOKEN[task]]))
        shape: list[Any] = ["batch", "sequence", rows.shape[1]]
    elif task == "classification":
        nodes += [h.make_node("Mul", ["found", "mask"], ["kept"]), h.make_node("ReduceSum", ["kept", "one"], ["logits"], keepdims=0)]
        shape = ["batch", rows.shape[1]]
    else:
        nodes += [
            h.make_node("Add", ["found", "mask"], ["both"]),
            h.make_node("Split", ["both"], ["first", "last"], axis=2, num_outputs=2),
            h.make_node("Squeeze", ["first", "two"], ["start_logits"]),
            h.make_node("Squeeze", ["last", "two"], ["end_logits"]),
        ]
        shape = ["batch", "sequence"]
    outputs = [h.make_tensor_value_info(name, T.FLOAT, shape) for name in OUTPUTS[task]]
    graph = h.make_graph(nodes, "g", inputs, outputs, constants)
    with bundle_folder(out) as staging:
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
        (staging.path / "encoder.onnx").write_bytes(model.SerializeToString())
        tokenizer().save(str(staging.path / "tokenizer.json"))
        staging.manifest = {
            "name": "tiny", "task": task, "default": "fp32", "tokenizers": {"source": "tokenizer.json"},
            "variants": {"fp32": {"files": ["encoder.onnx"], "graphs": {"encoder": "encoder.onnx"}}},
            "encoding": {"vocab_size": len(PIECES), **encoding},
        }  # fmt: skip
    return out


def ids(text: str) -> list[int]:
    """Ids of a text without special tokens."""
    found: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return found


def windows(tokens: list[int], room: int, stride: int) -> list[list[int]]:
    """Tokens in windows of `room` that share `stride`."""
    starts = [0]
    while starts[-1] + room < len(tokens):
        starts.append(starts[-1] + room - stride)
    return [tokens[start : start + room] for start in starts]
