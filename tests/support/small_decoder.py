"""A small cached decoder, traced once, and the ways to run its graphs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from onnxport.graph.store import write
from onnxport.runtime.processor import make_exact
from onnxport.runtime.sessions import Sessions

LAYERS, HIDDEN, HEADS, SIZE, VOCAB, FORWARD = 2, 32, 4, 8, 61, 48


class Layer(nn.Module):
    """Norm before the sub-layers in layer 0's style of nn.Transformer: self-attention, cross-attention, feed-forward."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.query, self.cross_out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, FORWARD), nn.Linear(FORWARD, HIDDEN)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(HIDDEN) for _ in range(3))

    def forward(self, x, self_mask, source_mask, past, cross):
        split = lambda y: y.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)  # noqa: E731
        merge = lambda y: y.transpose(1, 2).flatten(2)  # noqa: E731
        q, k, v = map(split, self.qkv(self.norm1(x)).chunk(3, -1))
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.out(merge(F.scaled_dot_product_attention(q, k, v, attn_mask=self_mask, scale=0.3)))
        y = self.query(self.norm2(x)).reshape(cross[0].shape[0], -1, HIDDEN)
        a = F.scaled_dot_product_attention(split(y), *cross, attn_mask=(source_mask != 0)[:, None, None, :])
        x = x + self.cross_out(merge(a).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm3(x)))), k, v


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCAB, HIDDEN), nn.Parameter(torch.randn(40, HIDDEN))
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.LayerNorm(HIDDEN)

    def forward(self, input_ids, position_ids, logits_index, self_mask, source_mask, caches):
        x, present = self.embedding(input_ids) * HIDDEN**0.5 + self.positions[position_ids], []
        for i, layer in enumerate(self.layers):
            past, cross = caches[2 * i : 2 * i + 2], caches[2 * (i + LAYERS) : 2 * (i + LAYERS) + 2]
            x, k, v = layer(x, self_mask, source_mask, past, cross)
            present += [k, v]
        x = self.norm(x)[torch.arange(x.shape[0]), logits_index]
        return (F.linear(x, self.embedding.weight), *present)


def decoder_inputs(sources, beams, length, past, source_length, seed=0):
    """Random inputs of the standard decoder, as arrays; source 0 has padding."""
    rng, rows = np.random.default_rng(seed), sources * beams
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    mask = np.ones((sources, source_length), np.int32)
    mask[0, max(1, source_length // 2) :] = 0
    inputs = {
        "input_ids": rng.integers(0, VOCAB, (rows, length)),
        "position_ids": np.tile(np.arange(past, past + length), (rows, 1)),
        "logits_index": np.full(rows, length - 1),
        "self_mask": np.tile(np.tril(np.ones((length, past + length), bool), past), (rows, 1, 1, 1)),
        "source_mask": mask,
    }
    for i in range(LAYERS):
        inputs |= {f"past_{c}_{i}": normal(rows, HEADS, past, SIZE) for c in ("key", "value")}
    for i in range(LAYERS):
        inputs |= {f"cross_{c}_{i}": normal(sources, HEADS, source_length, SIZE) for c in ("key", "value")}
    return inputs


@pytest.fixture(scope="session")
def traced():
    """The small decoder: its standard graph (ir.Model, to be left as it is) and its module."""
    torch.manual_seed(0)
    model = Decoder().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    inputs = {k: torch.from_numpy(v) for k, v in decoder_inputs(3, 2, 4, 5, 7).items()}
    axes = {"input_ids": {0: "batch", 1: "length"}, "position_ids": {0: "batch", 1: "length"}, "logits_index": {0: "batch"}}
    axes |= {"self_mask": {0: "batch", 2: "length", 3: "total"}, "source_mask": {0: "source_batch", 1: "source"}}
    caches = [{0: "batch", 2: "past"}] * (2 * LAYERS) + [{0: "source_batch", 2: "source"}] * (2 * LAYERS)
    outputs = ["logits", *(f"present_{c}_{i}" for i in range(LAYERS) for c in ("key", "value"))]
    values = list(inputs.values())
    program = torch.onnx.export(
        model,
        (*values[:5], values[5:]),
        dynamo=True,
        dynamic_shapes=(*axes.values(), caches),
        input_names=list(inputs),
        output_names=outputs,
        opset_version=23,
        verbose=False,
    )
    return SimpleNamespace(graph=program.model, module=model)


@pytest.fixture(scope="session")
def standard(traced):
    return traced.graph


@pytest.fixture(scope="session")
def eager(traced):
    """The same decoder in PyTorch: inputs by name -> outputs by name."""

    def call(inputs):
        values = [torch.from_numpy(np.asarray(inputs[v.name])) for v in traced.graph.graph.inputs]
        with torch.inference_mode():
            outputs = traced.module(*values[:5], values[5:])
        return {v.name: o.numpy() for v, o in zip(traced.graph.graph.outputs, outputs, strict=True)}

    return call


@pytest.fixture
def session(tmp_path):
    """model -> a session over its written files, so that everything tested went through the store."""

    def open_session(model: ir.Model, role: str = "model", threads: int = 1) -> ort.InferenceSession:
        folder = tmp_path / f"{role}{len(list(tmp_path.iterdir()))}"
        write({role: model}, folder)
        return load(folder / f"{role}.onnx", threads)

    return open_session


def load(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    make_exact(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run with those of the inputs that the graph has; outputs by name."""
    wanted = {i.name for i in session.get_inputs()}
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {k: v for k, v in inputs.items() if k in wanted}), strict=True)
    )


class Cached:
    """A fused decoder driven as the runtime does: one buffer per cache, bound as past and present."""

    def __init__(self, session: ort.InferenceSession, rows: int, capacity: int):
        self.session, self.rows = session, rows
        self.kind = np.float16 if any(i.type == "tensor(float16)" for i in session.get_inputs()) else np.float32
        zeros = lambda: ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, HEADS, capacity, SIZE), self.kind))  # noqa: E731
        self.caches = {f"{c}_{i}": zeros() for i in range(LAYERS) for c in ("key", "value")}

    def __call__(self, inputs, lengths, total) -> np.ndarray:
        binding = self.session.io_binding()
        given = {**inputs, "seqlens_k": np.asarray(lengths, np.int32) - 1, "total_sequence_length": np.array(total, np.int32)}
        for i in self.session.get_inputs():
            if not i.name.startswith("past"):
                array = given[i.name]
                binding.bind_cpu_input(i.name, array.astype(self.kind) if array.dtype == np.float32 else array)
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(f"present_{name}", cache)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()


def replay_cached(standard, fused, sources=2, beams=3, prompt=3, steps=3, source_length=5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prefill and steps, in PyTorch and through the fused graph, at shapes that were not traced: pairs of logits."""
    rows, rng = sources * beams, np.random.default_rng(1)
    base = decoder_inputs(sources, beams, prompt, 0, source_length)
    cached, pairs = Cached(fused, rows, prompt + steps + 2), []
    past = {k: v for k, v in base.items() if k.startswith("past")}
    done = 0
    for length in [prompt] + [1] * steps:
        now = {**base, **decoder_inputs(sources, beams, length, done, source_length, seed=done), **past}
        now |= {k: v for k, v in base.items() if k.startswith(("cross", "source"))}
        now["logits_index"] = rng.integers(0, length, rows)
        expected = standard(now)
        past = {k.replace("present", "past"): v for k, v in expected.items() if k.startswith("present")}
        done += length
        pairs.append((expected["logits"], cached(now, np.full(rows, done), done)))
    return pairs


def running(path: Path, disabled: list[str] | None = None) -> list[str]:
    """Types of the nodes that run on the CPU once the runtime has opened the graph, or ONNX Runtime with these optimizers disabled."""
    written = path.with_suffix(".written")

    class Writing(Sessions):
        def options(self, *given, **named):
            made = super().options(*given, **named)
            made.optimized_model_filepath = str(written)
            return made

    sessions = Writing("cpu", 1)
    if disabled is None:
        sessions.open(path)
    else:
        ort.InferenceSession(str(path), sessions.options(), providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    return [node.op_type for node in onnx.load(written, load_external_data=False).graph.node]


def build(nodes, inputs, outputs, weights=()) -> ir.Model:
    """A graph from lists: (op, inputs, outputs, attributes), name -> shape or (type, shape), name -> array; shapes inside are inferred."""
    kinds = {name: getattr(TensorProto, name.upper()) for name in ("float", "int64", "int32", "uint8", "bool")}

    def info(name, t):
        kind, shape = t if isinstance(t, tuple) else ("float", t)
        return helper.make_tensor_value_info(name, kinds[kind], shape)

    graph = helper.make_graph(
        [helper.make_node(op, i, o, name=f"{op}_{n}", **dict(*attributes)) for n, (op, i, o, *attributes) in enumerate(nodes)],
        "g", [info(*item) for item in inputs.items()], [info(*item) for item in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(weights).items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


helpers = SimpleNamespace(
    build=build,
    load=load, run=run, running=running, replay_cached=replay_cached, Cached=Cached, decoder_inputs=decoder_inputs,
)  # fmt: skip


@pytest.fixture(scope="session")
def tools():
    return helpers
