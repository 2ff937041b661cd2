"""Tiny random models as bundles, built by hand from the nodes a fused bundle holds, and the same models in plain NumPy."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxport.graph.logits_positions import pick_rows
from onnxport.graph.search_graphs import add_choice, search_graphs
from onnxport.runtime.bundle.writer import bundle_folder

HEADS, SIZE, LAYERS, VOCABULARY, POSITIONS = 2, 8, 2, 40, 48
HIDDEN = HEADS * SIZE
PAD, BOS, EOS = 0, 1, 2
MS = "com.microsoft"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]


class TinyModel:
    """Weights, and the model in NumPy: one text at a time, no cache."""

    def __init__(self, kind: str, seed: int = 0, sharpness: float = 3.0, vocabulary: int = VOCABULARY, positions: int = POSITIONS) -> None:
        rng = np.random.default_rng(seed)
        self.kind, self.vocabulary, self.positions = kind, vocabulary, positions

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.float32(shape[0]))

        self.w = {
            "embedding": normal(vocabulary, HIDDEN) * 6,
            "positions": normal(positions, HIDDEN) * 4,
            "head": normal(HIDDEN, vocabulary) * sharpness,
        }
        self.w["source"] = normal(vocabulary, HIDDEN) * 6
        for i in range(LAYERS):
            for name, columns in (
                ("qkv", 3 * HIDDEN),
                ("out", HIDDEN),
                ("query", HIDDEN),
                ("key", HIDDEN),
                ("value", HIDDEN),
                ("feed", HIDDEN),
            ):
                self.w[f"{name}{i}"] = normal(HIDDEN, columns)

    def cross(self, source: list[int]) -> list[np.ndarray]:
        x = self.w["source"][source] + self.w["positions"][: len(source)]
        return [_heads(x @ self.w[f"{c}{i}"]) for i in range(LAYERS) for c in ("key", "value")]

    def logits(self, source: list[int], ids: list[int]) -> np.ndarray:
        """[len(ids), vocabulary], float32."""
        x = self.w["embedding"][ids] + self.w["positions"][: len(ids)]
        cross = self.cross(source) if self.kind == "seq2seq" else []
        causal = np.triu(np.full((len(ids), len(ids)), -np.inf, np.float32), 1)
        for i in range(LAYERS):
            q, k, v = np.split(x @ self.w[f"qkv{i}"], 3, -1)
            x = x + _attend(_heads(q), _heads(k), _heads(v), causal) @ self.w[f"out{i}"]
            if cross:
                x = x + _attend(_heads(x @ self.w[f"query{i}"]), cross[2 * i], cross[2 * i + 1], np.float32(0))
            x = x + np.maximum(x @ self.w[f"feed{i}"], 0)
        return x @ self.w["head"]


def _heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), HEADS, SIZE).transpose(1, 0, 2)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
    s = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(SIZE)) + bias
    p = np.exp(s - s.max(-1, keepdims=True))
    y = (p / p.sum(-1, keepdims=True)) @ v
    return y.transpose(1, 0, 2).reshape(q.shape[1], HIDDEN)


class _Builder:
    def __init__(self, model: TinyModel) -> None:
        self.w, self.nodes, self.constants, self.inputs, self.outputs = model.w, [], {}, [], []

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(h.make_node(kind, inputs, [name], domain=domain, **attributes))
        return name

    def const(self, name: str, value: object = None, dtype: type = np.int64) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(self.w[name] if value is None else np.array(value, dtype), name))
        return name

    def linear(self, x: str, name: str) -> str:
        return self.op("MatMul", x, self.const(name))

    def save(self, path: Path, extra: tuple[h.OpsetIDProto, ...] = ()) -> None:
        graph = h.make_graph(self.nodes, "g", self.inputs, self.outputs, list(self.constants.values()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            h.make_model(graph, opset_imports=[h.make_opsetid("", 18), h.make_opsetid(MS, 1)], ir_version=9).SerializeToString()
        )


def encoder(model: TinyModel, path: Path) -> None:
    b = _Builder(model)
    b.inputs = [
        h.make_tensor_value_info("input_ids", T.INT64, ["batch", "source"]),
        h.make_tensor_value_info("source_mask", T.INT32, ["batch", "source"]),
    ]
    length = b.op("Shape", "input_ids", start=1, end=2)
    rows = b.op("Slice", b.const("positions"), b.const("zero", [0]), length, b.const("zero", [0]))
    x = b.op("Add", b.op("Gather", b.const("source"), "input_ids"), rows)
    for i in range(LAYERS):
        for c in ("key", "value"):
            y = b.op("Reshape", b.linear(x, f"{c}{i}"), b.const("split", [0, 0, HEADS, SIZE]))
            b.nodes.append(h.make_node("Transpose", [y], [f"cross_{c}_{i}"], perm=[0, 2, 1, 3]))
            b.outputs.append(h.make_tensor_value_info(f"cross_{c}_{i}", T.FLOAT, ["batch", HEADS, "source", SIZE]))
    b.save(path)


def decoder(model: TinyModel, path: Path) -> None:
    b, cache = _Builder(model), ["batch", HEADS, "capacity", SIZE]
    for name, kind, shape in (
        ("input_ids", T.INT64, ["batch", "length"]),
        ("position_ids", T.INT64, ["batch", "length"]),
        ("logits_index", T.INT64, ["batch"]),
        ("seqlens_k", T.INT32, ["batch"]),
        ("total_sequence_length", T.INT32, []),
    ):
        b.inputs.append(h.make_tensor_value_info(name, kind, shape))
    x = b.op("Add", b.op("Gather", b.const("embedding"), "input_ids"), b.op("Gather", b.const("positions"), "position_ids"))
    b.outputs.append(h.make_tensor_value_info("logits", T.FLOAT, ["batch", model.vocabulary]))
    if model.kind == "seq2seq":
        b.inputs.append(h.make_tensor_value_info("source_mask", T.INT32, ["source_batch", "source"]))
    else:
        b.inputs.append(h.make_tensor_value_info("query_seqlens", T.INT32, ["batch"]))
    for i in range(LAYERS):
        for c in ("key", "value"):
            b.inputs.append(h.make_tensor_value_info(f"past_{c}_{i}", T.FLOAT, cache))
            b.outputs.append(h.make_tensor_value_info(f"present_{c}_{i}", T.FLOAT, cache))
        inputs = [b.linear(x, f"qkv{i}"), "", "", f"past_key_{i}", f"past_value_{i}", "seqlens_k", "total_sequence_length"]
        if model.kind == "causal":
            inputs += [""] * 9 + ["query_seqlens"]
        outputs = [f"a{i}", f"present_key_{i}", f"present_value_{i}"]
        b.nodes.append(h.make_node("GroupQueryAttention", inputs, outputs, domain=MS, num_heads=HEADS, kv_num_heads=HEADS))
        x = b.op("Add", x, b.linear(f"a{i}", f"out{i}"))
        if model.kind == "seq2seq":
            for c in ("key", "value"):
                b.inputs.append(h.make_tensor_value_info(f"cross_{c}_{i}", T.FLOAT, ["source_batch", HEADS, "source", SIZE]))
            sources = b.op("Shape", "source_mask", start=0, end=1)
            q = b.op("Reshape", b.linear(x, f"query{i}"), b.op("Concat", sources, b.const("flat", [-1, HIDDEN]), axis=0))
            a = b.op("MultiHeadAttention", q, f"cross_key_{i}", f"cross_value_{i}", "", "source_mask", domain=MS, num_heads=HEADS)
            x = b.op("Add", x, b.op("Reshape", a, b.op("Shape", x)))
        x = b.op("Add", x, b.op("Relu", b.linear(x, f"feed{i}")))
    row = b.op("GatherND", x, b.op("Unsqueeze", "logits_index", b.const("one", [1])), batch_dims=1)
    b.nodes.append(h.make_node("MatMul", [row, b.const("head")], ["logits"]))
    b.save(path)
    ir.save(add_choice(pick_rows(ir.load(path))), path)


def tokenizer(kind: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    template = "$A </s>" if kind == "seq2seq" else "<s> $A"
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return made


def generation(kind: str, vocabulary: int = VOCABULARY, positions: int = POSITIONS) -> dict[str, object]:
    return {
        "kind": kind,
        "layers": LAYERS, "kv_heads": HEADS, "head_size": SIZE, "vocab_size": vocabulary, "max_length": positions, "pad_id": PAD,
        "bos_id": BOS, "eos_id": EOS, "decoder_start_id": BOS if kind == "seq2seq" else None,
        "source_vocab_size": vocabulary if kind == "seq2seq" else None,
    }  # fmt: skip


def goldens(model: TinyModel, seed: int = 5) -> dict[str, np.ndarray]:
    """Two ragged cases and a greedy one, as export writes them."""
    rng, found = np.random.default_rng(seed), {}
    for case, (rows, source, target) in enumerate([(3, 7, 9), (1, 4, 5)]):
        ids, mask = rng.integers(4, VOCABULARY, (rows, source)), np.ones((rows, source), np.int32)
        target_ids, lengths = rng.integers(4, VOCABULARY, (rows, target)), np.full(rows, target)
        target_ids[:, 0] = BOS
        if rows > 1:
            ids[1, 3:], mask[1, 3:], target_ids[2, 4:], lengths[2] = PAD, 0, PAD, 4
        logits = np.stack([model.logits(list(s[m > 0]), list(t)) for s, m, t in zip(ids, mask, target_ids, strict=True)])
        if model.kind == "seq2seq":
            name = f"seq{case}"
            found |= {
                f"{name}/source_ids": ids,
                f"{name}/source_mask": mask,
                f"{name}/target_ids": target_ids,
                f"{name}/target_lengths": lengths,
            }
        else:
            name = f"causal{case}"
            found |= {f"{name}/input_ids": target_ids, f"{name}/lengths": lengths}
        found[f"{name}/logits"] = logits
    if model.kind == "seq2seq":
        ids, mask = found["seq0/source_ids"], found["seq0/source_mask"]
        tokens = [greedy(model, list(s[m > 0]), [BOS], 6) for s, m in zip(ids, mask, strict=True)]
        found |= {
            "greedy/source_ids": ids,
            "greedy/source_mask": mask,
            "greedy/tokens": np.array(tokens),
            "greedy/lengths": np.full(len(ids), 6),
        }
    return found


def greedy(model: TinyModel, source: list[int], prefix: list[int], count: int) -> list[int]:
    """`count` tokens of greedy decoding that never chooses eos."""
    ids = list(prefix)
    for _ in range(count):
        row = model.logits(source, ids)[-1].copy()
        row[EOS] = -np.inf
        ids.append(int(row.argmax()))
    return ids[len(prefix) :]


def write_bundle(out: Path, model: TinyModel, with_tokenizer: bool = True, text: Tokenizer | None = None, **settings: object) -> Path:
    """The model as a bundle at `out`. text: another tokenizer than `tokenizer`. settings: of its generation."""
    with bundle_folder(out) as staging:
        graphs = {"decoder": "fp32/decoder.onnx"}
        decoder(model, staging.path / "fp32/decoder.onnx")
        if model.kind == "seq2seq":
            graphs["encoder"] = "fp32/encoder.onnx"
            encoder(model, staging.path / "fp32/encoder.onnx")
        (staging.path / "search").mkdir()
        search = {}
        for name, data in search_graphs(2 * LAYERS, model.vocabulary).items():
            search[name] = f"search/{name}.onnx"
            (staging.path / search[name]).write_bytes(data)
        np.savez(staging.path / "golden.npz", **goldens(model))
        if with_tokenizer:
            (text or tokenizer(model.kind)).save(str(staging.path / "tokenizer.json"))
        staging.manifest = {
            "name": "tiny", "task": "translation" if model.kind == "seq2seq" else "text-generation", "family": "tiny", "default": "fp32",
            "generation": generation(model.kind, model.vocabulary, model.positions) | settings, "search": search, "golden": "golden.npz",
            "tokenizers": {"source": "tokenizer.json", "target": "tokenizer.json"} if with_tokenizer else {},
            "variants": {"fp32": {"files": sorted(graphs.values()), "graphs": graphs, "target": "cpu", "plan": {}, "fusions": {},
                                  "parity": {"bounds": {"max_abs_diff": 1e-3, "relative_error": 1e-4}}}},
            "provenance": {},
        }  # fmt: skip
    return out


def with_chat(source: Path, out: Path, template: str, tokens: object) -> Path:
    """A copy of a bundle that has a chat template."""
    shutil.copytree(source, out)
    content = template.encode()
    (out / "chat_template.jinja").write_bytes(content)
    manifest = json.loads((out / "bundle.json").read_text())
    manifest["files"]["chat_template.jinja"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["chat"] = {"template": "chat_template.jinja", "tokens": tokens}
    (out / "bundle.json").write_text(json.dumps(manifest))
    return out
