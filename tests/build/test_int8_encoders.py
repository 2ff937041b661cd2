"""INT8 of encoders of texts: one scale serves what norms make, by the kit's texts; answers still do not hang on the texts beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxport.build.stages import add_variant, build
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle, sha256
from support import encoder_folders

STATIC, ROWS = "int8-static-minmax", "int8-rows"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    source = encoder_folders.write(folder / "source", encoder_folders.make("bert"), "bert")
    build(source, folder / "made", precision=("fp32", "int8"))
    return folder / "made"


def test_inputs_that_norms_make_have_one_scale(made: Path) -> None:
    plan = Bundle.open(made).variants["int8"].plan
    assert plan["encoder.layer.0.intermediate.dense.weight"] == STATIC
    assert plan["encoder.layer.0.output.dense.weight"] == plan["encoder.layer.0.attention.output.dense.weight"] == ROWS


def test_a_text_alone_and_in_a_batch_is_the_same_to_the_last_bit(made: Path) -> None:
    model = load(made, precision="int8", threads=1)
    texts = ["abc def", "the sea", "q", "a much longer text, of many words and letters."]
    together = model.encode(texts, batch_size=4)
    assert np.array_equal(together, np.concatenate([model.encode([text]) for text in texts]))


def test_its_plan_makes_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    before, plan = Bundle.open(made), tmp_path / "plan.json"
    plan.write_bytes((made / "int8" / "plan.json").read_bytes())
    files = {name: sha256(before.file(name)) for name in before.variants["int8"].files}
    add_variant(made, "int8", plan=plan, force=True)
    after = Bundle.open(made)
    assert {name: sha256(after.file(name)) for name in after.variants["int8"].files} == files


def test_without_a_tokenizer_every_row_keeps_its_own_scale(tmp_path: Path) -> None:
    source = encoder_folders.write(tmp_path / "source", encoder_folders.make("bert"), "bert", text=False)
    build(source, tmp_path / "made", precision=("fp32", "int8"))
    assert STATIC not in Bundle.open(tmp_path / "made").variants["int8"].plan.values()
