"""Folders of sentence-transformers: what its modules make of hidden states, as its code does it, through bundles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from onnxport.build.stages import build
from onnxport.cli.overview import overview
from onnxport.errors import CheckpointError, TextError, UsageError
from onnxport.export.resolve import resolve
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from support import encoder_folders as encoders
from support import task_folders as folders
from support.once import made_once
from support.sentence_folders import LAYERS, MODES, PROMPTS, modules, write_whole

TEXTS = ["the cat", "a dog lay by the door", "x", "Ada came to London"]
Exported = Callable[[str], Path]  # "plain" or "whole"


def hidden(folder: Path, text: str) -> torch.Tensor:
    """Hidden states [tokens, hidden] by transformers."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return found


def pooled(states: torch.Tensor, modes: Sequence[str], skip: int = 0) -> torch.Tensor:
    """As Pooling.forward of sentence-transformers, for a text without padding. skip: tokens of a prompt that do not count."""
    mask = torch.ones(len(states))
    mask[:skip] = 0
    weights = torch.arange(1, len(states) + 1) * mask
    kept = states[skip:]
    made = {
        "cls": kept[0],
        "max": kept.max(0).values,
        "mean": kept.mean(0),
        "mean_sqrt_len_tokens": kept.sum(0) / len(kept) ** 0.5,
        "weightedmean": (states * weights[:, None]).sum(0) / weights.sum(),
        "lasttoken": states[-1],
    }
    return torch.cat([made[mode] for mode in modes])


def through(vector: torch.Tensor, folder: Path) -> torch.Tensor:
    """The modules behind the pooling."""
    from safetensors.torch import load_file

    for i, (kind, config) in enumerate(LAYERS, start=2):
        place = folder / f"{i}_{kind}"
        if kind == "Normalize":
            vector = normalize(vector, dim=0)
            continue
        tensors = load_file(place / "model.safetensors")
        if kind == "LayerNorm":
            vector = torch.nn.functional.layer_norm(vector, vector.shape, tensors["norm.weight"], tensors["norm.bias"])
            continue
        activation = getattr(torch.nn, config["activation_function"].rpartition(".")[2])()
        out = activation(tensors["linear.weight"] @ vector + tensors.get("linear.bias", 0))
        if config.get("use_residual"):
            out = out + (tensors["residual.weight"] @ vector if "residual.weight" in tensors else vector)
        vector = out
    return vector


def made(name: str, folder: Path) -> None:
    """The folder `source` and its bundle."""
    if name == "plain":
        source = modules(folders.write(folder / "source", "bert", "bare"), {"pooling_mode_mean_tokens": True})
    else:
        source = write_whole(folder / "source")
    build(str(source), folder / "bundle", precision=("fp32",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return lambda name: made_once(tmp_path_factory, f"sentence-transformers-{name}", partial(made, name))


def test_every_pooling_prompt_and_layer(exported: Exported) -> None:
    source, bundle = exported("whole") / "source", Bundle.open(exported("whole") / "bundle", verify=True)
    assert bundle.encoding.pooling == "cls+max+mean+mean_sqrt_len+weightedmean+last"
    assert bundle.layers == "layers.npz" and bundle.variants["fp32"].bytes > bundle.files["layers.npz"].bytes
    assert "encoding.layers" in bundle.manifest.as_dict()["requires"]
    with load(bundle.path, threads=1) as model:
        for name, options in (
            ("query", {}), ("document", {"prompt_name": "document"}), ("long", {"prompt": PROMPTS["long"]}), ("document", {"prompt": ""}),
        ):  # fmt: skip
            prompt = PROMPTS[name]
            skip = 0 if not prompt else len(model.tokenize(prompt)) - 1  # without its [SEP]
            wanted = [through(pooled(hidden(source, prompt + text), MODES, skip), source) for text in TEXTS]
            found = model.encode(TEXTS, **options)
            np.testing.assert_allclose(found, torch.stack(wanted).numpy(), atol=2e-5)
        cut = torch.stack(wanted)[:, :7]
        np.testing.assert_allclose(model.encode(TEXTS, prompt="", truncate_dim=7), cut.numpy(), atol=2e-5)
        found = model.encode(TEXTS, prompt="", truncate_dim=7, normalize_embeddings=True, batch_size=2)
        np.testing.assert_allclose(found, normalize(cut, dim=1).numpy(), atol=2e-5)
        assert model.encode([]).shape == (0, 16)
        with pytest.raises(UsageError, match="prompt_name is 'passage', this bundle's prompts are: document, long, query"):
            model.encode("a", prompt_name="passage")
        with pytest.raises(UsageError, match="truncate_dim is 0"):
            model.encode("a", truncate_dim=0)
        with pytest.raises(TextError, match="the prompt has"):
            model.encode("a", prompt="a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t u v")
        with pytest.raises(TypeError, match="'normalize'; use normalize_embeddings"):
            model.encode("a", normalize=True)  # type: ignore[call-arg]


def test_plain_settings_and_progress(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    with load(exported("plain") / "bundle", threads=1) as model:
        wanted = torch.stack([hidden(exported("plain") / "source", text).mean(0) for text in TEXTS])
        np.testing.assert_allclose(model.encode(TEXTS, show_progress_bar=True), wanted.numpy(), atol=2e-5)
        told = capsys.readouterr()
        assert told.out == "" and "encoding windows (4 of 4)" in told.err and told.err.endswith("\n")
        found = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
        np.testing.assert_allclose(found, normalize(wanted, dim=1).numpy(), atol=2e-5)
        assert capsys.readouterr().err == ""
    assert "requires" not in Bundle.open(exported("plain") / "bundle").manifest.as_dict()


def test_inspect_says_how_vectors_are_made(exported: Exported) -> None:
    assert "\nvectors: mean\n" in overview(Bundle.open(exported("plain") / "bundle"))
    told = overview(Bundle.open(exported("whole") / "bundle"))
    assert "+last, normalize, dense, norm, dense, dense, normalize; prompts: document, long, query (default)\n" in told


def test_an_onnx_file_with_these_files_beside_it(exported: Exported, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(exported("whole") / "source", tmp_path / "source"))
    (folder / "model.safetensors").unlink()
    shutil.copytree(exported("whole") / "bundle" / "fp32", folder / "onnx")
    (folder / "onnx" / "encoder.onnx").rename(folder / "onnx" / "model.onnx")
    found = build(str(folder / "onnx" / "model.onnx"), tmp_path / "bundle", precision=("fp32",))
    assert found.task == "embedding" and "3_Dense/model.safetensors" in found.provenance["source"]
    with load(found.path, threads=1) as ours, load(exported("whole") / "bundle", threads=1) as other:
        np.testing.assert_allclose(ours.encode(TEXTS), other.encode(TEXTS), atol=1e-6)


def test_the_original_in_pytorch_goes_through_the_same(exported: Exported) -> None:
    from onnxport.export.reference.model import PyTorchReference

    with load(exported("whole") / "bundle", threads=1) as model:
        np.testing.assert_allclose(PyTorchReference(str(exported("whole") / "source")).encode(TEXTS), model.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools by 'median', expected some of cls, max"),
        ("3_Dense/config.json", {"activation_function": "mine.Swish"}, "activation_function is 'mine.Swish'"),
        ("3_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "none"}, "expected one of its prompts, query, document, long"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts is"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0"),
        ("modules.json", [("Transformer", ""), ("Dense", "3_Dense"), ("Pooling", "1_Pooling")], "a Dense module in this place"),
        ("modules.json", [("Transformer", ""), ("Pooling", "1_Pooling"), ("LSTM", "2_LSTM")], "a LSTM module"),
        ("modules.json", [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "5_Dense")], "behind vectors of 240"),
    ],
    ids=str,
)
def test_what_a_bundle_cannot_do_is_refused(exported: Exported, tmp_path: Path, name: str, changes: Any, said: str) -> None:
    import shutil

    folder = Path(shutil.copytree(exported("whole") / "source", tmp_path / "source"))
    if isinstance(changes, dict):
        changes = json.loads((folder / name).read_text()) | changes
    else:
        changes = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in changes]
    (folder / name).write_text(json.dumps(changes))
    with pytest.raises(CheckpointError, match=said):
        resolve(str(folder))


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_decoders_and_encoders_of_t5_embed(tmp_path: Path, kind: str) -> None:
    import transformers

    sizes = {"vocab_size": 61, "num_hidden_layers": 2, "pad_token_id": 1}
    if kind == "decoder":
        more = {"num_key_value_heads": 1, "head_dim": 20, "hidden_size": 40, "intermediate_size": 44, "num_attention_heads": 2}
        model: Any = transformers.Qwen3Model(transformers.Qwen3Config(**sizes, **more, tie_word_embeddings=False))
    else:
        config = transformers.T5Config(**sizes, d_model=40, d_kv=20, d_ff=44, num_layers=2, num_heads=2, eos_token_id=2)
        model = transformers.T5EncoderModel(config)
    encoders.randomize(model.eval())
    model.save_pretrained(tmp_path / "source")
    folders.save_tokenizer(tmp_path / "source", folders.letters("roberta"), folders.ROBERTA)
    mode = "lasttoken" if kind == "decoder" else "mean"
    modules(tmp_path / "source", {"pooling_mode": mode}, [("Dense", {"out_features": 12}), ("Normalize", {})])
    with load(build(str(tmp_path / "source"), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        assert ours.task == "embedding"
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "source")
        from safetensors.torch import load_file

        dense = load_file(tmp_path / "source" / "2_Dense" / "model.safetensors")
        for text, found in zip(TEXTS, ours.encode(TEXTS), strict=True):
            with torch.no_grad():
                states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            wanted = torch.tanh(dense["linear.weight"] @ pooled(states, [mode]) + dense["linear.bias"])
            np.testing.assert_allclose(found, normalize(wanted, dim=0).numpy(), atol=2e-5)
