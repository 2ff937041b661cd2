"""Sections of bundle.json become dataclasses and these the same sections again; a variant can ask for a newer ONNX Runtime."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError
from onnxport.runtime import load
from onnxport.runtime.bundle.manifest import REQUIRED, EncodingConfig, GenerationConfig, chat, encoding, generation
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import extended_bundle
from onnxport.runtime.options import SearchConfig
from onnxport.runtime.sessions import check_version
from onnxport.runtime.verify import verify

PLAIN = {
    "kind": "causal", "layers": 2, "kv_heads": 4, "head_size": 8, "vocab_size": 99, "max_length": None, "pad_id": 0, "bos_id": 1,
    "eos_id": 2, "decoder_start_id": None, "window": None,
}  # fmt: skip
SEARCHED = {
    "kind": "seq2seq", "layers": 2, "kv_heads": 4, "head_size": 8, "vocab_size": 99, "source_vocab_size": 50, "max_length": 64, "pad_id": 0,
    "bos_id": None, "eos_id": [2, 3], "decoder_start_id": 0, "max_new_tokens": 20, "min_new_tokens": 2, "beam": 4, "length_penalty": 2.0,
    "early_stopping": "never", "no_repeat_ngram": 3, "repetition_penalty": 1.5, "renormalize": True, "forced_bos_id": 5, "forced_eos_id": 2,
    "suppressed": [7], "begin_suppressed": [8, 9], "bad_words": [[10, 11], [12]], "encoder_no_repeat_ngram": 3, "max_source_length": 128,
    "languages": {"ids": {"de": 40, "en": 41}, "before": [None], "after": [2], "target": "forced", "source": "en"},
}  # fmt: skip


@pytest.mark.parametrize("section", [PLAIN, SEARCHED, PLAIN | {"eos_id": None, "window": 16, "temperature": 1.0, "top_k": 50}])
def test_generation_is_written_as_it_was_read(section: dict[str, Any]) -> None:
    config = generation(section)
    assert config is not None
    assert json.dumps(config.as_dict(), sort_keys=True) == json.dumps(section, sort_keys=True)


@pytest.mark.parametrize(
    ("task", "section"),
    [
        ("embedding", {"max_length": 64, "pad_id": 1, "vocab_size": 99, "pooling": "mean", "normalize": True}),
        ("classification", {"max_length": None, "pad_id": 0, "vocab_size": 99, "labels": ["a", "b"], "problem": "multi"}),
        ("question-answering", {"max_length": 64, "pad_id": 0, "vocab_size": 99, "kinds": False, "question_first": False}),
        ("tensor", {"max_length": 64, "pad_id": 0, "vocab_size": 99, "pooling": "cls"}),
        ("tensor", {"max_length": 64, "pad_id": 0, "vocab_size": 99, "labels": ["a", "b"], "problem": "single"}),
    ],
)
def test_encoding_is_written_as_it_was_read(task: str, section: dict[str, Any]) -> None:
    assert encoding(section).as_dict(task) == section


def test_chat_is_written_as_it_was_read() -> None:
    section = {"template": "chat.jinja", "tokens": {"eos_token": "</s>"}}
    config = chat(section)
    assert config is not None and config.as_dict() == section


@pytest.mark.parametrize(("oldest", "found"), [("1.33", "1.32.0"), ("1.32.1", "1.32"), ("2", "1.99.9.dev1"), ("1.9", "1.8")])
def test_an_older_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch, oldest: str, found: str) -> None:
    monkeypatch.setattr("onnxruntime.__version__", found)
    with pytest.raises(BundleError) as caught:
        check_version(oldest, "variant int8")
    assert str(caught.value) == f"variant int8 needs onnxruntime {oldest} or newer, found {found}; upgrade onnxruntime"


@pytest.mark.parametrize(
    ("oldest", "found"), [("1.32", "1.32.0"), ("1.32.0", "1.32"), ("1.9", "1.32.0"), ("1.31", "1.32.0.dev5"), (None, "1")]
)
def test_the_same_or_a_newer_onnxruntime_is_taken(monkeypatch: pytest.MonkeyPatch, oldest: str | None, found: str) -> None:
    monkeypatch.setattr("onnxruntime.__version__", found)
    check_version(oldest, "variant int8")


def needing(bundle: Path, folder: Path, version: object) -> Path:
    copy = Path(shutil.copytree(bundle, folder / "copy"))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["variants"]["fp32"]["min_onnxruntime"] = version
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return copy


def test_a_variant_names_the_oldest_onnxruntime_that_runs_it(tiny_bundle: Path, tmp_path: Path) -> None:
    path = needing(tiny_bundle, tmp_path, "99.1")
    for use in (load, verify):
        with pytest.raises(BundleError, match=r"variant fp32 of .* needs onnxruntime 99\.1 or newer, found 1\..*; upgrade onnxruntime"):
            use(path)


@pytest.mark.parametrize("version", ["new", "1.", "", 1.32])
def test_a_version_that_is_none_is_refused(tiny_bundle: Path, tmp_path: Path, version: object) -> None:
    with pytest.raises(BundleError, match="min_onnxruntime"):
        load(needing(tiny_bundle, tmp_path, version))


# keys that runtimes of version 0.1.0 read
OF_FORMAT_1 = {
    "generation": """kind layers kv_heads head_size vocab_size source_vocab_size max_length pad_id bos_id eos_ids decoder_start_id search
    max_new_tokens window beam min_new_tokens length_penalty early_stopping repetition_penalty no_repeat_ngram temperature top_k top_p
    renormalize forced_bos_id forced_eos_ids suppressed begin_suppressed bad_words""".split(),
    "encoding": "max_length pad_id pad_type_id vocab_size pooling normalize labels problem token_types question_first".split(),
}
OFFERED = {
    "encoding.prompts",
    "encoding.include_prompt",
    "encoding.similarity",
    "generation.languages",
    "generation.max_source_length",
}  # they change nothing that is not asked for
OF_VARIANTS = {"variants.whole_caches"}  # of those that are named with a target
OF_NEW_TASKS = {"encoding.mask_id", "encoding.unknown_id"}  # whose names older runtimes refuse


def test_every_key_since_format_1_is_required_or_changes_no_answers() -> None:
    known = {f"{section}.{key}" for section, keys in OF_FORMAT_1.items() for key in keys}
    kinds = {"generation": (GenerationConfig, SearchConfig), "encoding": (EncodingConfig,)}
    every = {f"{section}.{entry.name}" for section, classes in kinds.items() for kind in classes for entry in fields(kind)}
    assert (every - known) | OF_VARIANTS == {*REQUIRED, *OFFERED, *OF_NEW_TASKS}


def test_a_bundle_requires_the_keys_that_older_runtimes_do_not_know(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "requires" not in Bundle.open(tiny_bundle).manifest.value and Bundle.open(tiny_bundle).manifest.value["format"] == 1
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    with extended_bundle(copy) as staging:
        assert staging.manifest is not None
        staging.manifest["generation"]["max_total_tokens"] = 9
        staging.manifest["encoding"] = {"lower": True}
    for _ in range(2):
        manifest = Bundle.open(copy).manifest.value
        assert manifest["requires"] == ["encoding.lower", "generation.max_total_tokens"] and manifest["format"] == 2
        with extended_bundle(copy):  # stays so
            pass


@pytest.mark.parametrize(
    ("requires", "part"),
    [(["encoding.other"], "requires encoding.other, which this onnxport does not know; upgrade"), ("x", "list"), ([1], "list of names")],
)
def test_what_is_required_and_not_known_is_refused(tiny_bundle: Path, tmp_path: Path, requires: object, part: str) -> None:
    raw = Bundle.open(tiny_bundle).manifest.as_dict() | {"requires": requires}
    with pytest.raises(BundleError, match=part):
        Bundle.parse(raw, tiny_bundle)
