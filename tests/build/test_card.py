"""README.md of a bundle: facts of its manifest, and of the source's licence."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from onnxport.build.card import CARD, card, stated_license
from onnxport.build.stages import add_variant
from onnxport.runtime.bundle.reader import Bundle


def test_a_bundle_has_a_card_that_is_listed(bundle: Bundle) -> None:
    text = (bundle.path / CARD).read_text()
    assert CARD in bundle.files and text == card(bundle)
    parity = bundle.variants["int8"].parity
    for fact in (
        "pipeline_tag: translation", "# tiny", "| task | translation |", "| licence | the source states none |", "| default | `fp32` |",
        f"| `int8` | cpu | {bundle.variants['int8'].bytes / 1e6:.2f} MB | relative error {parity['relative_error']:.2g} (at most 0.1) |",
        "| `model.safetensors` |", 'model.generate(["How are you?"])', "onnxport verify FOLDER",
    ):  # fmt: skip
        assert fact in text, fact


def test_a_variant_that_is_added_is_in_it(plain_bundle: Bundle, tmp_path: Path) -> None:
    place = Path(shutil.copytree(plain_bundle.path, tmp_path / "copy"))
    (place / CARD).unlink()
    manifest = (place / "bundle.json").read_text()
    with pytest.raises(ValueError, match=CARD):
        Bundle.open(place)
    shutil.copyfile(plain_bundle.path / CARD, place / CARD)
    made = add_variant(place, "fp16")
    assert (place / "bundle.json").read_text() != manifest and "| `fp16` |" not in (plain_bundle.path / CARD).read_text()
    assert "| `fp16` |" in (place / CARD).read_text() == card(made)
    Bundle.open(place, verify=True)


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({}, None),
        ({"README.md": "# A model\nlicense: mit\n"}, None),
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0  # as ever\n---\n# A model\n", "LICENSE": "Another\n"}, "apache-2.0"),
        ({"README.md": '---\r\nlicense: "mit"\r\n---\r\n'}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n"}, "gemma"),
        ({"README.md": "---\nlicense:\n- mit\n---\n", "LICENSE": "\n   MIT License   \n\nCopyright"}, "MIT License"),
        ({"LICENCE.txt": "<b>`Mine`</b> | all\n"}, "-b--Mine--/b- - all"),
    ],
)
def test_the_licence_is_what_the_source_states(tmp_path: Path, files: dict[str, str], stated: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "model.onnx").write_text("")
    assert stated_license(tmp_path) == stated == stated_license(str(tmp_path / "model.onnx"))
    assert stated_license("module:build") is None and stated_license(object()) is None


def test_names_of_strangers_are_text_in_it(bundle: Bundle) -> None:
    strange = replace(bundle, name="a|b`c\n# d", provenance={"license": "x\n---\ny: <script>", "source": {"`|": "0"}})
    text = card(strange)
    assert "# a-b-c - d\n" in text and 'license: "x --- y: -script-"\n' in text and "| `--` | `0` |" in text


@pytest.mark.parametrize("task", ["embedding", "classification", "question-answering", "multiple-choice", "tensor", "fill-mask"])
def test_each_task_has_its_own_call(bundle: Bundle, task: str) -> None:
    text = card(replace(bundle, task=task))
    assert "model.generate" not in text and f"| task | {task} |" in text
