"""INT8 of encoders of texts: one scale serves what norms make, by the kit's texts; answers still do not hang on the texts beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.build.stages import add_variant, build
from onnxport.quantize.calibration_inputs import kit_encoder_feeds
from onnxport.runtime import load
from onnxport.runtime.bundle.manifest import EncodingConfig
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


def test_models_that_read_two_texts_at_once_are_calibrated_on_pairs_too(tmp_path: Path) -> None:
    encoder_folders.tokenizer("bert").save(str(tmp_path / "tokenizer.json"))
    given = ("input_ids", "attention_mask", "token_type_ids")
    ends = [ir.Value(name=name, shape=ir.Shape(["n", "m"]), type=ir.TensorType(ir.DataType.INT64)) for name in given]
    encoder = ir.Model(ir.Graph(ends, [], nodes=[], opset_imports={"": 23}), ir_version=10)
    config = EncodingConfig(max_length=48, vocab_size=61)
    alone, both = (kit_encoder_feeds(config, tmp_path / "tokenizer.json", encoder, pairs) for pairs in (False, True))
    assert not any(feed["token_type_ids"].any() for feed in alone)
    assert len(both) == 2 * len(alone) - 1 and any(feed["token_type_ids"].any() for feed in both)
    assert {int(feed["input_ids"][0, -1]) for feed in both} == {2} and max(feed["input_ids"].shape[1] for feed in both) == 48
