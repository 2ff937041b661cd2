"""Encoders of transformers that are none of the families, and subclasses of known ones, are traced directly, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from onnxport.build.stages import build
from onnxport.runtime import load
from support import encoder_folders as folders
from support.refusals import assert_refused

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"max_position_embeddings": 48, "embedding_size": 32}
TEXTS = ["the cat", "a dog lay by the door", "who?", "mat, door and cat!", "on the mat"]
BATCHES = [[1], [9], [46], [7] * 5, [5, 1, 9, 3, 44]]


def write(folder: Path, name: str, text: bool = True, **config: Any) -> Path:
    """A tiny random folder of the class `name` of transformers."""
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**SIZES | {"pad_token_id": 0} | config)).eval()
    folders.randomize(model)
    return folders.write(folder, model, "bert", text)


def theirs(folder: Path, name: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return dict(model(**given).items())


def assert_runs_equal(ours: Any, folder: Path, name: str, family: str, types: int) -> None:
    """At shapes that were not traced, with padding and without."""
    for lengths in BATCHES:
        given = folders.batch(family, lengths, types)
        wanted, mask = theirs(folder, name, given), given["attention_mask"]
        for output, found in ours.run({key: array.numpy() for key, array in given.items()}).items():
            found, right = torch.as_tensor(found), wanted[output]
            if right.shape[:2] == mask.shape:
                found, right = found[mask > 0], right[mask > 0]
            torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


def test_a_classifier_of_no_known_type(tmp_path: Path) -> None:
    labels = {0: "calm", 1: "glad", 2: "sad"}
    name = "ElectraForSequenceClassification"
    folder = write(tmp_path / "source", name, num_labels=3, id2label=labels, problem_type="multi_label_classification")
    bundle = build(str(folder), tmp_path / "bundle")
    assert bundle.provenance["route"] == "direct" and bundle.family == "electra" and bundle.task == "classification"
    assert bundle.variants["fp32"].fusions["multi_head_attention"] == 1 and set(bundle.variants) == {"fp32", "fp16", "int8"}
    assert "int8-rows" in bundle.variants["int8"].plan.values()
    with load(bundle.path, threads=1) as ours:
        assert_runs_equal(ours, folder, name, "bert", 2)
        names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), folders.BERT, strict=True))
        reader = PreTrainedTokenizerFast(tokenizer_object=folders.tokenizer("bert"), **names)
        wanted = torch.sigmoid(theirs(folder, name, dict(reader(TEXTS, padding=True, return_tensors="pt")))["logits"])
        for result, row in zip(ours.classify(TEXTS), wanted, strict=True):
            assert [result.scores[label] for label in labels.values()] == pytest.approx(row.tolist(), abs=1e-4)


def test_hidden_states_with_a_bias_by_distance(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", "MPNetModel", pad_token_id=1, max_position_embeddings=50)
    folders.tokenizer("roberta").save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    bundle = build(str(folder), tmp_path / "bundle", precision=("fp32",))
    assert bundle.provenance["route"] == "direct" and bundle.encoding.max_length == 48
    with load(bundle.path, threads=1) as ours:
        assert_runs_equal(ours, folder, "MPNetModel", "roberta", 0)
        ids = folders.tokenizer("roberta").encode(TEXTS[1]).ids
        wanted = theirs(folder, "MPNetModel", {"input_ids": torch.tensor([ids])})["last_hidden_state"][0, 0]
        np.testing.assert_allclose(ours.encode(TEXTS)[1], wanted.numpy(), atol=1e-4)


FACTORY = """
import torch, transformers
class Mine({base}):
    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state * 2
def build():
    torch.manual_seed(0)
    config = transformers.BertConfig({sizes})
    return Mine(config).eval(), {{"input_ids": torch.randint(1, 61, (1, 7)), "attention_mask": torch.ones(1, 7, dtype=torch.long)}}
def known():
    return (transformers.BertModel(transformers.BertConfig({sizes})), *build()[1:])
"""


@pytest.mark.parametrize(("factory", "outputs"), [("build", ["output"]), ("known", ["last_hidden_state", "pooler_output"])])
def test_subclasses_and_known_classes_from_a_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, outputs: list[str]
) -> None:
    sizes = ", ".join(f"{name}={value}" for name, value in SIZES.items())
    (tmp_path / f"berts_{factory}.py").write_text(FACTORY.format(base="transformers.BertModel", sizes=sizes))
    monkeypatch.chdir(tmp_path)
    bundle = build(f"berts_{factory}:{factory}", tmp_path / "bundle", precision=("fp32",))
    assert bundle.provenance["route"] == "direct" and bundle.task == "tensor"
    with load(bundle.path, threads=1) as ours:
        for lengths in BATCHES:
            given = folders.batch("bert", lengths, 0)
            found = ours.run({name: array.numpy() for name, array in given.items()})
            assert list(found) == outputs and found[outputs[0]].shape == (*given["input_ids"].shape, 32)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "nonesuch"}, ["model_type 'nonesuch'", "does not know", '"model_type" of transformers', "an encoder of texts"]),
        ({"model_type": "opt"}, ["architectures is ['ElectraModel']", "OPTForCausalLM"]),
        ({"model_type": "vit"}, ["model_type 'vit'", "reads pixel_values and no input_ids"]),
        ({"is_decoder": True}, ["architectures is ['ElectraModel']", "ElectraForCausalLM"]),
        ({"auto_map": {"AutoModel": "mine.Electra"}}, ["the folder's own code", "auto_map: AutoModel", "--allow-remote-code"]),
        ({"architectures": ["ElectraForSomethingElse"]}, ["ElectraForSomethingElse", "ElectraForSequenceClassification"]),
        ({"architectures": ["ElectraForQuestionAnswering"]}, ["missing tensors", "qa_outputs.weight"]),
        ({"hidden_act": "nonesuch"}, ["transformers refuses", "nonesuch"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refused_folders(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_refused(folders.change(write(tmp_path, "ElectraModel"), **changes), *parts)


def test_a_class_whose_padding_counts_is_refused(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, "ConvBertModel"), "ConvBertModel answers a text otherwise when it is padded", "from a factory")


def test_a_class_that_cannot_be_traced_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = transformers.ElectraModel.forward

    def branching(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> Any:
        found = forward(self, input_ids=input_ids, attention_mask=attention_mask, **rest)
        return found if found.last_hidden_state.sum() > 1e9 else found

    monkeypatch.setattr(transformers.ElectraModel, "forward", branching)
    folder = write(tmp_path, "ElectraModel", type_vocab_size=1, text=False)
    assert_refused(folder, "torch could not trace encoder", "data-dependent")
