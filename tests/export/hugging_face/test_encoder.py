"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT folders equal transformers' own classes, in PyTorch and as bundles."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from onnxport.build.stages import build
from onnxport.errors import UsageError
from onnxport.export.resolve import resolve
from onnxport.export.source import Source
from onnxport.runtime import load
from support import encoder_folders as folders
from support.refusals import assert_refused

SIZES = [(20, 2), (32, 3), (80, 1), (128, 2)]  # of a head, and how many: none of 20 and 80 is what the fused kernel likes
BATCHES = [[1], [9], [48], [7] * 5, [5, 1, 9, 3, 46]]  # alone, without padding and with it; 46 and 48 near the last position
QUESTION, CONTEXT = "Who sat there?", "The cat sat on the mat, and the dog lay by the door. " * 3
TEXTS = ["the cat", "a dog lay by the door", "who?", "mat, door and cat!", "on the mat"]


def theirs(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if type(model).__name__.endswith("MultipleChoice"):
        given = {name: tensor[:, None] for name, tensor in given.items()}  # one choice a row
    with torch.no_grad():
        return {name: value for name, value in model(**given).items() if isinstance(value, torch.Tensor)}


def assert_equal(found: dict[str, Any], wanted: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    """Within 1e-4 wherever a token is."""
    assert found
    for name, ours in found.items():
        ours, right = torch.as_tensor(ours), wanted[name]
        assert ours.shape == right.shape
        if right.shape[:2] == mask.shape:
            ours, right = ours[mask > 0], right[mask > 0]
        torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)


def assert_canonical_equals(folder: Path, family: str, model: Any, longest: int = 48) -> Source:
    """The described original and the canonical model answer as `model` does."""
    found = resolve(folder)
    described = found.adapter.describe()
    encoder = described.build().graphs["encoder"].module
    for lengths in BATCHES:
        given = folders.batch(family, [min(n, longest) for n in lengths], described.types)
        wanted = theirs(model, given)
        with torch.no_grad():
            results = encoder(*given.values())
            named = dict(zip(described.outputs, results if isinstance(results, tuple) else (results,), strict=True))
            assert_equal(named, wanted, given["attention_mask"])
            assert_equal(described.answer(given), wanted, given["attention_mask"])
    return found


CASES = [
    (family, head, *SIZES[(i + i // len(folders.HEADS)) % 4]) for i, (family, head) in enumerate(product(folders.CLASSES, folders.HEADS))
]


@pytest.mark.parametrize(("family", "head", "size", "heads"), CASES, ids=lambda value: str(value))
def test_every_family_and_head_equals_transformers(tmp_path: Path, family: str, head: str, size: int, heads: int) -> None:
    layers = 1 if size == 20 else 2
    rows = 48 if folders.pad(family) == 0 else 50  # RoBERTa's positions begin behind the padding's id
    model = folders.make(family, head, size, heads, num_hidden_layers=layers, max_position_embeddings=rows)
    found = assert_canonical_equals(folders.write(tmp_path, model, family), family, model)
    tasks = {"bare": "embedding", "questions": "question-answering", "tokens": "token-classification", "masked": "fill-mask"}
    tasks |= {"choices": "multiple-choice"}
    assert found.family == family and found.task == tasks.get(head, "classification") and found.adapter.describe().max_length == 48


BERT_4 = {"gradient_checkpointing": False, "position_embedding_type": "absolute", "use_cache": True, "classifier_dropout": None}
BERT_4 |= {"directionality": "bidi", "pooler_fc_size": 40, "pooler_num_attention_heads": 2, "pooler_num_fc_layers": 3}
BERT_4 |= {"pooler_size_per_head": 20, "pooler_type": "first_token_transform", "transformers_version": "4.6.0.dev0", "dtype": ...}
ROBERTA_4 = {"bos_token_id": 0, "eos_token_id": 2, "output_past": True, "gradient_checkpointing": False, "type_vocab_size": 2, "dtype": ...}
ROBERTA_4 |= {"language": "english", "name": "Roberta", "torch_dtype": "float32", "transformers_version": "4.17.0.dev0"}
DISTIL_4 = {"sinusoidal_pos_embds": False, "tie_weights_": True, "output_past": True, "finetuning_task": "sst-2", "dtype": ...}
DISTIL_4 |= {"qa_dropout": 0.1, "seq_classif_dropout": 0.2, "transformers_version": "4.10.0.dev0"}


@pytest.mark.parametrize(("family", "old"), [("bert", BERT_4), ("roberta", ROBERTA_4), ("camembert", ROBERTA_4), ("distilbert", DISTIL_4)])
def test_configs_of_transformers_4_and_shards(tmp_path: Path, family: str, old: dict[str, Any]) -> None:
    model = folders.make(family, "single", max_position_embeddings=50)
    folder = folders.change(folders.write(tmp_path, model, family, max_shard_size="30KB"), **old)
    assert len(list(folder.glob("*.safetensors"))) > 2
    found = assert_canonical_equals(folder, family, model)
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} < set(found.hashes)


@pytest.mark.parametrize(("family", "ending"), [("bert", "ForPreTraining"), ("xlm-roberta", "ForMaskedLM"), ("distilbert", "ForMaskedLM")])
def test_a_head_of_training_is_left_out(tmp_path: Path, family: str, ending: str) -> None:
    """Of BERT's two heads, and where sentence-transformers' files or the weights say that there is none."""
    import transformers
    from safetensors.torch import load_file, save_file

    bare = folders.make(family, max_position_embeddings=50)
    whole = getattr(transformers, folders.CLASSES[family] + ending)(bare.config)
    getattr(whole, whole.base_model_prefix).load_state_dict(bare.state_dict(), strict=False)
    folder = folders.write(tmp_path / "whole", whole, family)
    if ending == "ForMaskedLM":
        assert resolve(folder).task == "fill-mask"
        modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
        (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{t}", "path": p} for t, p in modules]))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert assert_canonical_equals(folder, family, bare).task == "embedding"
    for name in ("modules.json", "1_Pooling/config.json"):
        (folder / name).unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{whole.base_model_prefix}.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert assert_canonical_equals(folder, family, bare).task == "embedding"


def test_old_names_of_norms_one_kind_of_tokens_and_activations(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for i, act in enumerate(("gelu_new", "relu", "silu")):
        model = folders.make("bert", "questions", type_vocab_size=i + 1, hidden_act=act)
        path = folders.write(tmp_path / act, model, "bert") / "model.safetensors"
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        tensors = load_file(path)
        for new, former in old.items():
            tensors = {name.replace(new, former): tensor for name, tensor in tensors.items()}
        save_file(tensors, path, {"format": "pt"})
        assert_canonical_equals(path.parent, "bert", model)


# a bundle for each family, each with another head and another size
BUNDLES = {"bert": ("bare", 32, 2), "roberta": ("single", 80, 1), "xlm-roberta": ("multi", 20, 2)}
BUNDLES |= {"camembert": ("questions", 128, 1), "distilbert": ("regression", 20, 3)}


@pytest.fixture(scope="module", params=BUNDLES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Any, Any]:
    """(family, head, transformers' model, the loaded fp32 bundle)."""
    family, (head, size, heads) = request.param, BUNDLES[request.param]
    rows = 48 if folders.pad(family) == 0 else 50
    model = folders.make(family, head, size, heads, num_hidden_layers=1, max_position_embeddings=rows)
    folder = folders.write(tmp_path_factory.mktemp(family) / "source", model, family)
    if head == "bare":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}))
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(kinds.items())]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))  # as its tokenizer does
    bundle = build(str(folder), folder.parent / "bundle", precision=("fp32",))
    assert bundle.provenance["route"] == "canonical" and bundle.variants["fp32"].fusions["multi_head_attention"] == 1
    return family, head, model, load(bundle.path, threads=1)


def test_bundles_equal_transformers(exported: Any) -> None:
    family, _, model, ours = exported
    types = int(model.config.type_vocab_size) if family != "distilbert" else 0
    for lengths in BATCHES:
        given = folders.batch(family, lengths, types)
        assert_equal(ours.run({name: array.numpy() for name, array in given.items()}), theirs(model, given), given["attention_mask"])


def test_bundles_answer_texts_as_transformers_does(exported: Any) -> None:
    family, head, model, ours = exported
    special = folders.BERT if folders.pad(family) == 0 else [folders.ROBERTA[i] for i in (1, 0, 2, 3)]
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), special, strict=True))
    reader = PreTrainedTokenizerFast(tokenizer_object=folders.tokenizer(family), **names)
    texts: Any = (TEXTS,) if head != "questions" else ([QUESTION], [CONTEXT])
    cut: Any = (
        {"truncation": "only_second", "max_length": 48, "stride": 9, "return_overflowing_tokens": True} if head == "questions" else {}
    )
    read = reader(*texts, padding=True, return_tensors="pt", return_token_type_ids=family != "distilbert", **cut)
    given = {name: read[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in read}
    wanted = theirs(model, given)
    if head == "bare":
        mask = given["attention_mask"][..., None]
        pooled = (wanted["last_hidden_state"] * mask).sum(1) / mask.sum(1)
        np.testing.assert_allclose(ours.encode(TEXTS), torch.nn.functional.normalize(pooled, dim=1).numpy(), atol=1e-5)
    elif head == "questions":
        (found,) = ours.answer(question=QUESTION, context=CONTEXT, stride=9, max_answer_tokens=12)
        score, start, end = best_span(read, wanted, 12)
        assert (found.start, found.end) == (start, end) and found.score == pytest.approx(score, rel=1e-3)
    else:
        rules = {"single": lambda x: x.softmax(-1), "multi": torch.sigmoid, "regression": lambda x: x}
        scores = rules[head](wanted["logits"])
        for result, row in zip(ours.classify(TEXTS), scores, strict=True):
            assert [result.scores[name] for name in model.config.id2label.values()] == pytest.approx(row.tolist(), abs=1e-4)


def best_span(read: Any, output: dict[str, torch.Tensor], most: int) -> tuple[float, int, int]:
    """(score, first character, the one behind the last) of the best answer in whole words, by the pipeline's rules."""
    found = []
    for i, encoding in enumerate(read.encodings):
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        allowed = torch.tensor(inside | (np.arange(len(inside)) == 0))
        first, last = (
            torch.where(allowed, output[f"{side}_logits"][i].double(), -torch.inf).softmax(0).numpy() for side in ("start", "end")
        )
        for s, e in product(np.flatnonzero(inside), repeat=2):
            if s <= e < s + most:
                words = encoding.token_to_word(s), encoding.token_to_word(e)
                found.append((first[s] * last[e], encoding.word_to_chars(words[0], 1)[0], encoding.word_to_chars(words[1], 1)[1]))
    return max(found)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"architectures": ["BertForSomethingElse"]},
            ["BertForSomethingElse", "BertForSequenceClassification", "BertForQuestionAnswering"],
        ),
        ({"is_decoder": True, "add_cross_attention": True}, ["is_decoder is True", "add_cross_attention is True"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type is 'relative_key', expected one of 'absolute'"]),
        ({"hidden_act": "mish"}, ["hidden_act is 'mish'", "'gelu'"]),
        ({"auto_map": {"AutoModel": "mine.Bert"}}, ["auto_map: AutoModel", "--allow-remote-code"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config has the quant_method None"]),
        ({"num_attention_heads": 7}, ["transformers refuses", "(40)", "(7)"]),
        ({"pad_token_id": None}, ["pad_token_id is None, expected an integer"]),
        ({"architectures": ["BertForQuestionAnswering"]}, ["missing tensors", "qa_outputs.weight"]),
        ({"intermediate_size": 48}, ["bert.encoder.layer.0.intermediate.dense.weight"]),
        ({"id2label": {"1": "bad", "2": "good", "3": "best"}}, ["id2label is", "each number from 0 to 2"]),
        ({"id2label": {"0": "bad", "1": "good", "2": "good"}}, ["id2label is", "another name"]),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, ["activation_fn is 'Tanh'", "Sigmoid"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    folder = folders.write(tmp_path, folders.make("bert", "single"), "bert")
    assert_refused(folders.change(folder, **changes), *parts)


def test_a_single_kind_of_tokens_whatever_the_tokenizer_tells(tmp_path: Path) -> None:
    model = folders.make("roberta", "single", type_vocab_size=1, max_position_embeddings=50)
    folder = folders.write(tmp_path / "source", model, "roberta")
    tokenizer = folders.tokenizer("roberta")
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    with load(build(str(folder), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        (found,) = ours.classify([("the cat", "a dog")])
    wanted = model(torch.tensor([tokenizer.encode("the cat", "a dog").ids])).logits[0].softmax(0).tolist()
    assert [found.scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("file", "said", "part"),
    [
        ("modules.json", ["Transformer"], "expected objects"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has a Dense module"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length is '256'"),
        ("sentence_roberta_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q", "prompts": {"d": "query: "}}, "default_prompt_name is 'q'"),
    ],
)
def test_what_sentence_transformers_would_do_and_a_bundle_not(tmp_path: Path, file: str, said: Any, part: str) -> None:
    folder = folders.write(tmp_path, folders.make("bert"), "bert")
    keeping = folders.tokenizer("bert")
    keeping.normalizer = None
    keeping.save(str(folder / "tokenizer.json"))
    (folder / "modules.json").write_text("[]")
    (folder / file).write_text(json.dumps(said))
    assert_refused(folder, part)


def test_impossible_tasks_and_larger_tokenizers(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "questions", folders.make("roberta", "questions"), "roberta")
    assert_refused(folder, "task embedding is not possible", "question-answering, tensor", error=UsageError, task="embedding")
    folder = folders.write(tmp_path / "small", folders.make("distilbert", vocab_size=59), "distilbert")
    assert_refused(folder, "the source tokenizer has ids up to 59 and the source vocabulary 59 rows")
