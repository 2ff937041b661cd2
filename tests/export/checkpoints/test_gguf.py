"""GGUF files: weights of every block type, config, tokenizer and chat template as transformers reads them, and what it would pass over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from onnxport.export.resolve import resolve
from onnxport.quantize.schemes.blocks.stored import scheme_of
from onnxport.runtime.tokenizer import TextTokenizer
from support.refusals import assert_refused

pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Kind

from support import gguf_files

IDS = torch.tensor([[5, 17, 2, 40, 33, 8]])


def theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_file_answers_as_transformers_reads_it(tmp_path: Path, kind: Kind) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), kind)
    found = resolve(path)
    assert torch.equal(logits(found.adapter.model), logits(theirs(path)))
    assert (found.name, found.family, found.task, list(found.hashes)) == ("tiny", "llama", "text-generation", ["tiny.gguf"])
    assert any(kind.name in note for note in found.notes)


WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
K_QUANTS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_blocks_of_256(tmp_path: Path, kind: Kind) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained(WIDE), {"proj": kind, "": Kind.Q8_0})
    found = resolve(path)
    assert torch.equal(logits(found.adapter.model), logits(theirs(path)))
    weight = found.adapter.model.model.layers[0].mlp.down_proj.weight.numpy()
    carried = {
        Kind.Q2_K: "int4-blocks16-min",
        Kind.Q3_K: "int4-blocks16",
        Kind.Q4_K: "int4-blocks32-min",
        Kind.Q5_K: "int8-blocks32-min",
        Kind.Q6_K: "int8-blocks16",
    }
    assert scheme_of(weight) == carried[kind]


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        (Kind.Q4_0, "int4-blocks32"),
        (Kind.Q4_1, "int4-blocks32-min"),
        (Kind.Q5_0, "int8-blocks32"),
        (Kind.Q5_1, "int8-blocks32-min"),
        (Kind.Q8_0, "int8-blocks32"),
    ],
)
def test_blocks_that_are_carried(tmp_path: Path, kind: Kind, scheme: str) -> None:
    model = resolve(gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), kind)).adapter.model
    for weight in (model.model.layers[0].self_attn.q_proj.weight, model.lm_head.weight):
        assert scheme_of(weight.numpy()) == scheme


@pytest.mark.parametrize("tied", [False, True])
def test_config_tokenizer_and_chat_template_come_from_the_file(tmp_path: Path, tied: bool) -> None:
    path = gguf_files.write(tmp_path / "named-otherwise", gguf_files.trained({"tie_word_embeddings": tied}), Kind.Q8_0)
    found = resolve(path)
    assert found.adapter.model.config.tie_word_embeddings == tied and found.adapter.ids["eos_id"] == 299
    tokenizer = TextTokenizer(found.tokenizers["source"])
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    wanted = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="link.gguf")
    for text in ("the cat", "  the Cat's 12 <|end|> café", "<extra3>"):
        assert list(tokenizer.encode([text])[0]) == wanted(text).input_ids
    assert found.chat is not None and found.chat.text == gguf_files.TEMPLATE


def test_a_folder_that_holds_one_file(tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), Kind.Q8_0)
    (tmp_path / "README.md").write_text("nothing else")
    found = resolve(tmp_path)
    assert found.name == tmp_path.name and "tiny.gguf is taken" in found.notes[0]


def factors(model: Any, **changed: float) -> np.ndarray:
    """What llama.cpp's converter writes of Llama 3's frequencies: the plain ones over the scaled ones."""
    said = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = type(model.config)(**model.config.to_dict() | {"rope_parameters": {"rope_theta": 500000.0} | said | changed})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    return (plain / scaled).numpy()


def test_rotary_factors_of_llama_3_are_not_passed_over(tmp_path: Path) -> None:
    model = gguf_files.trained({**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
    path = gguf_files.write(tmp_path / "tiny.gguf", model, Kind.Q8_0, more={"rope_freqs.weight": factors(model)})
    found = resolve(path).adapter.model
    frequencies = found.model.rotary_emb.inv_freq
    plain = 500000.0 ** -(torch.arange(0, 64, 2).float() / 64)
    assert torch.allclose(frequencies, plain / torch.from_numpy(factors(model)), rtol=1e-5)
    assert not torch.allclose(frequencies, plain, rtol=0.1)
    other = gguf_files.write(tmp_path / "other.gguf", model, Kind.Q8_0, more={"rope_freqs.weight": factors(model, low_freq_factor=2.0)})
    assert_refused(other, "rope_freqs.weight", "give its folder of Hugging Face")


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 16},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
        ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}),
    ],
)
def test_scaling_of_rotary_positions_is_not_passed_over(tmp_path: Path, extra: dict[str, Any], wanted: dict[str, Any]) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), Kind.Q8_0, extra=extra)
    assert wanted.items() <= resolve(path).adapter.model.config.rope_parameters.items()


@pytest.mark.parametrize(
    ("extra", "more", "message"),
    [
        ({"llama.attention.scale": 0.5}, {}, "attention.scale is 0.5"),
        ({"llama.attention.sliding_window": 16}, {}, "attention.sliding_window is 16"),
        ({"llama.attention.value_length": 32}, {}, "attention.value_length is 32"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "'longrope'"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, "takes"),
        ({"split.count": 3}, {}, "one of 3 parts"),
    ],
)
def test_what_transformers_would_pass_over_is_refused(tmp_path: Path, extra: dict[str, Any], more: dict[str, Any], message: str) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), Kind.Q8_0, extra=extra, more=more)
    assert str(path) in assert_refused(path, message)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), Kind.Q8_0)
    data = path.read_bytes()
    for name, content in (("header", data[:100]), ("tensors", data[: len(data) // 2]), ("magic", b"GGUF" + bytes(40)), ("none", b"GGU")):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, str(tmp_path / name))


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), Kind.Q8_0)
    (tmp_path / "other.gguf").write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    assert_refused(tmp_path / "other.gguf", "other.gguf", "lamma")
