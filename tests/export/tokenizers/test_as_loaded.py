"""What the files beside tokenizer.json say of a tokenizer holds as in transformers; nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from onnxport.errors import CheckpointError
from onnxport.export.sentence_transformers import TextSettings, problem, read_modules, score_notes, transformer_folder
from onnxport.export.tokenizers import library
from onnxport.export.tokenizers.folder import FolderTokenizers, hugging_face
from onnxport.runtime.tokenizer import TextTokenizer

NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
TEXTS = ["What THE Cát saw", " hello [NEW] you", "a[NEW]b 日本", "x [new] y [MASK]"]
FLAGS = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def make(folder: Path, settings: dict[str, Any] | None, model_type: str = "bert", **files: Any) -> Path:
    """Words in single letters, small ones, with the names of BERT."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {piece: i for i, piece in enumerate([*NAMES.values(), *letters, *(f"##{c}" for c in letters), *".,?!"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    made.add_special_tokens(list(NAMES.values()))
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, value in {"config": {"model_type": model_type}, "tokenizer_config": settings, **files}.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def assert_as_loaded(folder: Path) -> FolderTokenizers:
    """Ids of texts and pairs, token types and decoded texts are transformers'."""
    found, theirs = hugging_face(folder, "bert"), library.load(folder, "bert")
    ours = TextTokenizer(found.by_side["source"])
    assert ours.encode(TEXTS) == theirs(TEXTS)["input_ids"]
    for ids in theirs(TEXTS)["input_ids"]:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert found.gives_types == ("token_type_ids" in theirs("a", "b"))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        {"tokenizer_class": "BertTokenizer", "strip_accents": False, "tokenize_chinese_chars": False},
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"61": {"content": "[NEW]", **FLAGS}}},
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"61": {"content": "[NEW]", **FLAGS, "normalized": True}}},
        {"tokenizer_class": "BertTokenizer", "extra_special_tokens": ["[NEW]"]},
        {"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, "eos_token": "you", "clean_up_tokenization_spaces": True},
    ],
    ids=lambda value: "-".join(list(value)[1:3]),
)
def test_settings_beside_tokenizer_json_hold(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = assert_as_loaded(make(tmp_path / "model", settings))
    assert {"tokenizer.json", "tokenizer_config.json"} == {path.name for path in found.files} and not found.notes


def test_older_files_hold(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", {"tokenizer_class": "BertTokenizer"}, added_tokens={"[NEW]": 61})
    found = assert_as_loaded(folder)
    assert Tokenizer.from_str(found.by_side["source"].decode()).token_to_id("[NEW]") == 61


def test_a_file_that_the_class_makes_another_kind_of_is_taken_with_a_note(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", None, "roberta")
    found = hugging_face(folder, "roberta")
    assert found.by_side["source"] == (folder / "tokenizer.json").read_bytes() and not found.gives_types
    assert found.notes == ("tokenizer.json is taken as it is: transformers would make BPE where the file has WordPiece of it",)


@pytest.mark.parametrize("config", [None, {"id2label": {"0": "a"}}], ids=["no config", "no model_type"])
@pytest.mark.parametrize("settings", [{"tokenizer_class": "BertTokenizer", "do_lower_case": False}, {"eos_token": "you"}], ids=list)
def test_settings_hold_where_nothing_names_the_model(tmp_path: Path, settings: dict[str, Any], config: dict[str, Any] | None) -> None:
    folder = make(tmp_path / "model", settings, config=config)
    found, theirs = hugging_face(folder, ""), library.load(folder, "")
    assert TextTokenizer(found.by_side["source"]).encode(TEXTS) == theirs(TEXTS)["input_ids"]
    assert type(theirs).__name__ == settings.get("tokenizer_class", "TokenizersBackend") and not found.notes


def test_where_nothing_names_the_model_nor_a_class_fits_the_file_is_taken_with_a_note(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", {"tokenizer_class": "MarianTokenizer"}, config=None)
    found = hugging_face(folder, "")
    assert found.by_side["source"] == (folder / "tokenizer.json").read_bytes() and "for an unnamed model" in found.notes[0]
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        hugging_face(folder, "")


def test_what_no_file_can_say_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", {"tokenizer_class": "BertTokenizer", "split_special_tokens": True})
    with pytest.raises(CheckpointError, match="no tokenizer.json here can say: .*there and .*here"):
        hugging_face(folder, "bert")


def test_activations_of_cross_encoders() -> None:
    def stated(name: str, older: bool = False) -> dict[str, Any]:
        path = f"torch.nn.modules.{name}"
        return {"sbert_ce_default_activation_function": path} if older else {"sentence_transformers": {"activation_fn": path}}

    for older in (False, True):
        assert problem(stated("activation.Sigmoid", older), 1) == "multi"
        assert problem(stated("linear.Identity", older), 1) == "regression"
        assert problem(stated("activation.Sigmoid", older), 3) == "multi"
        assert problem(stated("linear.Identity", older), 3) == "single"
        with pytest.raises(CheckpointError, match="expected Identity, Sigmoid, Softmax"):
            problem(stated("activation.Tanh", older), 1)
    assert problem({}, 1) == "multi" and "sigmoid" in score_notes({}, 1)[0]
    assert problem({"problem_type": "regression"}, 1) == "regression" and score_notes({"problem_type": "regression"}, 1) == []


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_settings_of_sentence_transformers_in_old_and_new_layouts(tmp_path: Path, kind: str) -> None:
    for place in ("", "0_Transformer"):
        folder = tmp_path / f"model{place}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / "1_Pooling").mkdir()
        modules = [{"path": place, "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
        (folder / place / "config.json").write_text("{}")
        assert read_modules(folder, longest=99) == TextSettings("cls", max_length=99)
        (folder / place / f"sentence_{kind}_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": True}))
        assert transformer_folder(folder) == folder / place
        assert read_modules(folder, token_types=False, longest=99) == TextSettings("cls", False, 24, False, True)


def test_a_length_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", {"tokenizer_class": "BertTokenizer", "model_max_length": "long"})
    with pytest.raises(CheckpointError, match="model_max_length"):
        hugging_face(folder, "bert")
