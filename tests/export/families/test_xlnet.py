"""XLNet folders equal transformers' own classes, whichever side is padded, in PyTorch and as bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from onnxport.build.stages import build
from onnxport.errors import DataError
from onnxport.export.canonical.graphs import expected_fusions
from onnxport.export.resolve import resolve
from onnxport.runtime import load
from onnxport.runtime.tokenizer import TextTokenizer
from support import tokenizer_folders as spm
from support.refusals import assert_refused

SPECIAL = ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]  # ids from 3 on, as XLNet has them
SENTENCES = [
    "The cat sat on the mat.",
    "A dog lay by the door, and it slept (well).",
    "Who sat there? The cat did!",
    "Señor Ünal paid 3,50 €.",
]
QUESTION, CONTEXT = "Who sat there?", "The cat sat on the mat, and the dog lay by the door. " * 3
TEXTS = ["the cat", "A dog  lay by\tthe door, ``well''.", "who?", "mat", "Señor <sep> Ünal ½ 猫 <cls>"]
ROWS = [[1], [9], [7, 7, 7], [5, 1, 9, 3, 30]]  # lengths: alone, without padding and with it


def model_of(name: str, size: int = 20, heads: int = 2, seed: int = 0, **config: Any) -> Any:
    """A class of transformers with random weights; all terms of the scores are about as large."""
    sizes = {"vocab_size": 99, "d_model": size * heads, "n_layer": 2, "n_head": heads, "d_inner": 50, "mem_len": None, **config}
    made = getattr(transformers, name)(transformers.XLNetConfig(**sizes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in made.named_parameters():
        noise, last = torch.randn(parameter.shape, generator=generator), path.rpartition(".")[2]
        scale = 0.8 * parameter.shape[0] ** -0.5 if last in ("q", "k", "v", "o", "r") else 0.5 if "word" in path else 0.3
        parameter.copy_(1 + 0.1 * noise if "layer_norm.weight" in path else scale * noise)
    return made


def write(model: Any, folder: Path, config: dict[str, Any] | None = None, **tokenizer: Any) -> Path:
    """The model's folder with the tokenizer's spiece.model; `config` changes config.json, `tokenizer` is tokenizer_config.json."""
    model.save_pretrained(folder)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | config).items() if v is not ...}))
    (folder / "spiece.model").write_bytes(pieces())
    if tokenizer:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLNetTokenizer", **tokenizer}))
    return folder


def pieces(made: list[bytes] = []) -> bytes:  # noqa: B006  # trained once
    made[:] = made or [spm.train(SENTENCES * 9, 70, pad_id=-1, control_symbols=SPECIAL, user_defined_symbols=["(", ")", "€"])]
    return made[0]


def batch(lengths: list[int], seed: int = 3) -> list[dict[str, Tensor]]:
    """Rows of random ids, in which kinds of tokens change twice."""
    random = np.random.default_rng(seed)
    rows = []
    for n in lengths:
        kinds = np.minimum(np.arange(n) // max(1, n // 2), 1)
        kinds[-1] = 2
        rows.append({"input_ids": torch.from_numpy(random.integers(10, 99, n)), "token_type_ids": torch.from_numpy(kinds)})
    return rows


def padded(rows: list[dict[str, Tensor]], left: bool) -> dict[str, Tensor]:
    """The rows in one array, in the graph's order of inputs."""
    rows = [{"input_ids": row["input_ids"], "attention_mask": torch.ones_like(row["input_ids"]), **row} for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda tensor: torch.nn.functional.pad(tensor, [longest - len(tensor), 0] if left else [0, longest - len(tensor)])  # noqa: E731
    return {name: torch.stack([pad(row[name]) for row in rows]) for name in ("input_ids", "attention_mask", "token_type_ids")}


def assert_rows_equal(found: dict[str, Any], alone: list[dict[str, Tensor]], lengths: list[int], left: bool = False) -> None:
    """Every row's answers where it has tokens are those that it gets alone."""
    assert found.keys() == alone[0].keys()
    for name, array in found.items():
        for got, wanted, length in zip(torch.as_tensor(array), alone, lengths, strict=True):
            if wanted[name].shape[1:2] == (length,):
                got = got[-length:] if left else got[:length]
            torch.testing.assert_close(got, wanted[name][0], atol=1e-4, rtol=1e-4)


def answers(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in model(**given, use_mems=False).items() if isinstance(value, Tensor)}


HEADS = {"states": "XLNetModel", "labels": "XLNetForSequenceClassification", "answers": "XLNetForQuestionAnsweringSimple"}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("states", {"n_layer": 1}),
    ("states", {"size": 80, "heads": 1, "clamp_len": 4}),
    ("states", {"size": 32, "heads": 3, "ff_activation": "relu", "mem_len": 0, "same_length": True}),
    ("labels", {"size": 20, "num_labels": 3, "n_layer": 1}),
    ("labels", {"size": 32, "heads": 3, "num_labels": 2, "summary_activation": "gelu", "summary_type": "cls_index"}),
    ("answers", {"size": 80, "heads": 2, "n_layer": 1, "mem_len": 5, "reuse_len": 3}),
]


@pytest.mark.parametrize(("head", "settings"), SETTINGS)
def test_canonical_model_equals_transformers_whichever_side_is_padded(tmp_path: Path, head: str, settings: dict[str, Any]) -> None:
    model = model_of(HEADS[head], **settings)
    found = resolve(write(model, tmp_path)).adapter.describe()
    built = found.build()
    assert built.graphs["encoder"].stack.layers[0].size % 8 == 0
    for lengths in ROWS:
        rows = batch(lengths)
        alone = [answers(model, {name: tensor[None] for name, tensor in row.items()}) for row in rows]
        right = padded(rows, left=False)
        results = built.graphs["encoder"].module(*right.values())
        assert_rows_equal(dict(zip(found.outputs, results if isinstance(results, tuple) else (results,), strict=True)), alone, lengths)
        assert_rows_equal(answers(model, padded(rows, left=True)), alone, lengths, left=True)
        assert_rows_equal(found.answer(right), alone, lengths)
        left = padded(rows, left=True)
        results = built.graphs["encoder"].module(*left.values())
        answered = dict(zip(found.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        assert_rows_equal(answered, alone, lengths, left=True)
        if head != "labels":  # transformers takes the last position for [CLS], padding too
            assert_rows_equal(answers(model, right), alone, lengths)


def tokenized(folder: Path, *texts: Any, **options: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", padding=True, **options)


def test_bundle_of_states(tmp_path: Path) -> None:
    """Texts as transformers' tokenizer of this folder gives them, which tells no kinds; shapes that were not traced."""
    model = model_of("XLNetLMHeadModel")
    folder = write(model, tmp_path / "source", model_max_length=40)
    bundle = build(str(folder), tmp_path / "bundle", precision=("fp32", "fp16", "int8"))
    given = tokenized(folder, TEXTS)
    assert "token_type_ids" not in given and given["attention_mask"][0, 0] == 0
    mask = given["attention_mask"][:, :, None]
    states = model.transformer(**given).last_hidden_state
    wanted = ((states * mask).sum(1) / mask.sum(1)).numpy()
    for precision, bound in (("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)):
        assert bundle.variants[precision].fusions["multi_head_attention"] == 2
        with load(bundle.path, precision=precision, threads=1) as ours:
            assert abs(ours.encode(TEXTS) - wanted).max() < bound
            if precision == "fp32":
                for lengths in ([1], [2, 1], [40, 3], [17]):
                    rows = batch(lengths)
                    alone = [answers(model.transformer, {name: tensor[None] for name, tensor in row.items()}) for row in rows]
                    arrays = {name: tensor.numpy() for name, tensor in padded(rows, left=False).items()}
                    assert_rows_equal(ours.run(arrays), alone, lengths)
                with pytest.raises(DataError):
                    ours.run({name: tensor.numpy() for name, tensor in padded(batch([41]), left=False).items()})


def test_bundle_of_labels(tmp_path: Path) -> None:
    """[CLS] is the last real token, of a kind of its own where the tokenizer tells kinds; long texts in windows that end with it."""
    model = model_of("XLNetForSequenceClassification", num_labels=3, n_layer=1, seed=1)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    folder = write(model, tmp_path / "source", model_max_length=26, model_input_names=names)
    with load(build(str(folder), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        found = ours.classify([*TEXTS, ("the cat", "a dog"), CONTEXT], stride=5)
    given = tokenized(folder, TEXTS)
    assert given["token_type_ids"][0, -1] == 2
    wanted = [*model(**given).logits, model(**tokenized(folder, [("the cat", "a dog")])).logits[0]]
    windows = tokenized(folder, CONTEXT, truncation=True, max_length=26, stride=5, return_overflowing_tokens=True)
    windows.pop("overflow_to_sample_mapping")
    weights = windows["attention_mask"].sum(1, keepdim=True)
    wanted.append((model(**windows).logits * weights).sum(0) / weights.sum())
    for result, logits in zip(found, wanted, strict=True):
        assert [result.scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)


def test_bundle_of_answers(tmp_path: Path) -> None:
    """The context is read, and cut, before the question, as models that are padded on the left are trained."""
    model = model_of("XLNetForQuestionAnsweringSimple", n_layer=1, seed=2)
    folder = write(model, tmp_path / "source", model_max_length=40)
    with load(build(str(folder), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        (found,) = ours.answer(question=QUESTION, context=CONTEXT, stride=7, max_answer_tokens=6)
    windows = tokenized(folder, CONTEXT, QUESTION, truncation="only_first", max_length=40, stride=7, return_overflowing_tokens=True)
    windows.pop("overflow_to_sample_mapping")
    output = model(**windows)
    best, nothing = 0.0, 1.0
    for encoding, starts, ends in zip(windows.encodings, output.start_logits.double(), output.end_logits.double(), strict=True):
        assert encoding.tokens[-1] == "<cls>"
        inside = torch.tensor([part == 0 for part in encoding.sequence_ids])
        allowed = inside.clone()
        allowed[-1] = True
        first, last = (torch.where(allowed, one, -torch.inf).softmax(0) for one in (starts, ends))
        nothing = min(nothing, float(first[-1] * last[-1]))
        products = torch.outer(first * inside, last * inside).triu().tril(5)
        best = max(best, float(products.max()))
    assert len(windows["input_ids"]) > 3
    assert found.score == pytest.approx(best, rel=1e-4) and found.no_answer_score == pytest.approx(nothing, rel=1e-4)
    assert found.answer and CONTEXT[found.start : found.end] == found.answer


@pytest.mark.parametrize("ready", [False, True], ids=["spiece.model", "tokenizer.json"])
def test_ids_are_those_of_transformers(tmp_path: Path, ready: bool) -> None:
    folder = write(model_of("XLNetModel", n_layer=1), tmp_path, do_lower_case=ready)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if ready:
        theirs.save_pretrained(folder)
        (folder / "spiece.model").unlink()
    found = resolve(folder)
    assert {"tokenizer.json" if ready else "spiece.model"} <= set(found.hashes)
    texts = [*TEXTS, *SENTENCES, CONTEXT, "", " ", "\n€(x)\u0301"]
    assert TextTokenizer(found.tokenizers["source"]).encode(texts) == [theirs(text)["input_ids"] for text in texts]
    assert theirs("cat")["input_ids"][-2:] == [4, 3]


XLNET_4 = {"untie_r": True, "d_head": 20, "dtype": ..., "torch_dtype": "float32", "transformers_version": "4.6.0", "n_token": 99}
XLNET_4 |= {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 250}}, "use_mems_eval": ..., "same_length": ...}
XLNET_4 |= {"dropatt": 0.1, "init": "normal", "init_range": 0.1, "init_std": 0.05, "summary_last_dropout": 0.1, "start_n_top": 5}


def test_config_of_transformers_4(tmp_path: Path) -> None:
    model = model_of("XLNetModel")
    found = resolve(write(model, tmp_path, XLNET_4)).adapter.describe()
    given = padded(batch([7]), left=False)
    torch.testing.assert_close(found.build().graphs["encoder"].module(*given.values()), model(**given).last_hidden_state)
    assert found.max_length == 512 and found.tasks == ("embedding", "tensor")
    assert expected_fusions(found.build())["encoder"] == {"multi_head_attention": 2, "skip_layer_norm": 4}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"architectures": ["XLNetForQuestionAnswering"]}, ("several starts", "expected XLNetForQuestionAnsweringSimple")),
        ({"architectures": ["XLNetForMultipleChoice"]}, ("XLNetForMultipleChoice", "XLNetForSequenceClassification")),
        ({"attn_type": "uni"}, ("attn_type is 'uni', expected one of 'bi'",)),
        ({"bi_data": True}, ("bi_data is True",)),
        ({"summary_type": "mean"}, ("summary_type is 'mean'",)),
        ({"summary_use_proj": False}, ("summary_use_proj is False",)),
        ({"n_token": 98}, ("n_token is 98, expected vocab_size's 99",)),
        ({"max_position_embeddings": 512, "d_inner": 0}, ("no longest text", "d_inner is 0")),
    ],
)
def test_what_is_refused(tmp_path: Path, config: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert_refused(write(model_of("XLNetModel", n_layer=1), tmp_path, config), "config.json", *parts)
