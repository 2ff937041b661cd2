"""T5 and mT5 folders become bundles whose logits, greedy answers and beams are those of transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from onnxport.build.stages import build
from onnxport.errors import CheckpointError
from onnxport.export import golden
from onnxport.export.canonical.graphs import check_seq2seq
from onnxport.export.families.t5 import HuggingFaceT5
from onnxport.export.resolve import resolve
from onnxport.export.user_code import evaluating
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle

TINY: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 40,
    "d_kv": 20,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SETTINGS: list[dict[str, Any]] = [
    {},
    GATED,
    {"num_layers": 1, "num_decoder_layers": 3, "d_kv": 32},
    {"d_kv": 80, "num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "gated-silu"},
    {"d_kv": 128, "num_heads": 1, "num_layers": 1, "num_decoder_layers": 1},
    {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6},
]


def write(folder: Path, kind: str = "T5", **settings: Any) -> Any:
    """A random model, saved in `folder`; its answers depend on the source and on distances."""
    config = getattr(transformers, f"{kind}Config")(**TINY | settings)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layer_norm" in name:
                parameter += 0.2 * noise
            elif any(word in name for word in ("relative", "shared", "lm_head")):
                parameter.copy_(noise)
            else:
                crossing = "EncDec" in name and (".v." in name or ".o." in name)
                parameter.copy_(noise * (6 if crossing else 0.8) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings)) or "usual")
def test_every_setting_equals_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = write(tmp_path / "model", **settings)
    found = resolve(tmp_path / "model")
    adapter = found.adapter
    assert isinstance(adapter, HuggingFaceT5) and (found.family, found.task, adapter.max_length) == ("t5", "text2text", None)
    with evaluating(adapter.model), torch.no_grad():
        goldens = golden.seq2seq_goldens(adapter.original(), adapter.ids, adapter.max_length)
        check_seq2seq(adapter.build(), goldens)
        source, mask, target = (torch.from_numpy(goldens[f"seq0/{name}"]) for name in ("source_ids", "source_mask", "target_ids"))
        theirs = model(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target).logits.numpy()
    compared = np.arange(target.shape[1])[None, :] < goldens["seq0/target_lengths"][:, None]
    assert abs(goldens["seq0/logits"] - theirs)[compared].max() < 1e-4


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    """A T5 with few and near distances: transformers' model and our bundle."""
    made = tmp_path_factory.mktemp("t5")
    model = write(made / "model", relative_attention_max_distance=20, relative_attention_num_buckets=8)
    return model, build(made / "model", made / "bundle", precision=("fp32",))


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    made = tmp_path_factory.mktemp("mt5")
    return write(made / "model", "MT5", **GATED), build(made / "model", made / "bundle", precision=("fp32",))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_answers_are_those_of_transformers(request: pytest.FixtureRequest, kind: str) -> None:
    """64 tokens alone, in a batch of five lengths, and in a batch of two whose rows are replaced as they finish; and four beams."""
    model, bundle = request.getfixturevalue(kind)
    assert bundle.family == kind and bundle.variants["fp32"].parity["max_abs_diff"] < 1e-4
    runtime, random = load(bundle.path, threads=1), np.random.default_rng(1)
    sources = [random.integers(3, 101, length).tolist() for length in (5, 1, 9, 3, 30)]
    longest = max(map(len, sources))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sources])
    with torch.no_grad():
        greedy = model.generate(ids, attention_mask=mask, min_new_tokens=64, max_new_tokens=64)[:, 1:].tolist()
        beams = model.generate(ids, attention_mask=mask, min_new_tokens=12, max_new_tokens=12, num_beams=4)[:, 1:].tolist()
    least = {"min_new_tokens": 64, "max_new_tokens": 64, "beam": 1}
    assert [found.tokens for found in runtime.generate(sources, **least)] == greedy
    assert [found.tokens for found in runtime.generate(sources, batch_size=2, **least)] == greedy
    assert [runtime.generate([source], **least)[0].tokens for source in sources] == greedy
    assert [found.tokens for found in runtime.generate(sources, min_new_tokens=12, max_new_tokens=12, beam=4)] == beams
    assert len({tuple(row) for row in greedy}) == 5


def test_rows_that_join_a_running_batch_answer_as_alone(t5: tuple[Any, Bundle]) -> None:
    """Rows end at different steps, so those that take their place start while others are far on: biases differ by row."""
    runtime, random = load(t5[1].path, threads=1), np.random.default_rng(3)
    sources = [random.integers(3, 101, length).tolist() for length in random.integers(1, 20, 12)]
    alone = [runtime.generate([source], beam=1, max_new_tokens=40)[0].tokens for source in sources]
    assert [found.tokens for found in runtime.generate(sources, beam=1, max_new_tokens=40, batch_size=3)] == alone
    assert len({len(row) for row in alone}) > 1


@pytest.mark.parametrize(
    ("key", "value"), [("feed_forward_proj", "gated-mish"), ("relative_attention_num_buckets", 0), ("add_cross_attention", True)]
)
def test_settings_that_would_not_be_reproduced_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        resolve(tmp_path)
