"""Modules of a user's own, through every stage and in every precision, against PyTorch."""

from pathlib import Path

import numpy as np
import torch

from onnxport.build.stages import build
from onnxport.export import CausalLM, Module
from onnxport.runtime import load

BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}


def encoder(norm_first: bool = False) -> torch.nn.TransformerEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = torch.nn.TransformerEncoderLayer(32, 2, 48, batch_first=True, norm_first=norm_first)
        return torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def test_batch_first_module_answers_as_pytorch_at_other_shapes(tmp_path: Path) -> None:
    module = encoder()
    source = Module(module, inputs={"src": torch.rand(1, 6, 32)}, dynamic={"src": {0: "batch", 1: "length"}}, outputs=["output"])
    path = build(source, tmp_path / "bundle").path
    assert module.training
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 9, 32)).astype(np.float32))
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    for precision, bound in BOUNDS.items():
        with load(path, precision=precision) as model:
            found = model.run({"src": x.numpy()})["output"]
        assert np.sqrt(np.mean((found - expected) ** 2)) <= bound * expected.std(), precision


def test_causal_language_model_goes_on_as_pytorch(tmp_path: Path) -> None:
    transformer, embedding = encoder(norm_first=True), torch.nn.Embedding(40, 32)
    source = CausalLM(transformer=transformer, embedding=embedding, pad_id=0, bos_id=1, eos_id=2, max_length=32)
    path = build(source, tmp_path / "bundle").path
    transformer.eval()
    ids = [1, 7, 9, 30]
    with torch.no_grad():
        for _ in range(6):
            mask = torch.nn.Transformer.generate_square_subsequent_mask(len(ids))
            hidden = transformer(embedding(torch.tensor([ids])), mask=mask)
            logits = hidden[0, -1] @ embedding.weight.T
            logits[2] = -torch.inf  # no end token before min_new_tokens
            ids.append(int(logits.argmax()))
    with load(path, precision="fp32") as model:
        (result,) = model.generate([ids[:4]], max_new_tokens=6, min_new_tokens=6)
    assert result.tokens == ids[4:]
    for precision in ("fp16", "int8"):
        with load(path, precision=precision) as model:
            assert len(model.generate([ids[:4]], max_new_tokens=6, min_new_tokens=6)[0].tokens) == 6
