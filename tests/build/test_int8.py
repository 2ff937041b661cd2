"""INT8 as users meet it: a text's answer does not hang on the texts beside it, and `int8-weight` is a precision like the others."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from onnxport.runtime import Model, load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.sessions import Sessions
from support.commands import invoke


def sources(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[*rng.choices(range(1, 96), k=rng.randrange(1, 20)), 0] for _ in range(count)]


@pytest.fixture(scope="module")
def lively(marian: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose answers depend on its inputs, which those of a random tied model rarely do, without settings of its own."""
    path = Path(shutil.copytree(marian / "bundle", tmp_path_factory.mktemp("lively") / "bundle"))
    manifest = json.loads((path / "bundle.json").read_text())
    for name in ("bad_words", "beam", "length_penalty", "max_new_tokens", "renormalize"):
        del manifest["generation"][name]
    (path / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


@pytest.fixture(scope="module")
def model(lively: Bundle) -> Model:
    return load(lively.path, "int8", threads=1)


@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_rows_of_the_encoder_are_equal_to_the_last_bit(lively: Bundle, count: int) -> None:
    """Whoever stands beside them, padded or not."""
    session = Sessions.on("cpu", 1).open(lively.file(lively.variants["int8"].graphs["encoder"]))
    text, others = [5, 9, 30, 4, 11, 0], sources(63, seed=1)

    def keys(rows: list[list[int]], width: int) -> np.ndarray:
        ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        found: np.ndarray = session.run(["cross_key_1"], {"input_ids": ids, "source_mask": mask})[0]
        return found[0, :, : len(text)]

    np.testing.assert_array_equal(keys([text, *others[: count - 1]], 20), keys([text], 20))
    np.testing.assert_array_equal(keys([text] * count, 6), keys([text], 6))


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("count", [4, 16, 64])
def test_scores_are_equal_to_the_last_bit_in_any_batch(model: Model, beam: int, count: int) -> None:
    """Sources of one length: what is left beside the rows themselves is the number of rows."""
    rng = random.Random(2)
    rows = [[*rng.choices(range(1, 96), k=12), 0] for _ in range(count)]
    for row, found in zip(rows, model.generate(rows, beam=beam, max_new_tokens=12, batch_size=count), strict=True):
        assert model.generate([row], beam=beam, max_new_tokens=12) == [found]


@pytest.mark.parametrize("beam", [1, 3])
def test_a_text_is_answered_alone_as_in_a_ragged_batch(model: Model, beam: int) -> None:
    """Attention to a source that is padded adds its weights in another order, so that scores move by a rounding, in any precision."""
    rows = sources(32)
    together = model.generate(rows, beam=beam, max_new_tokens=12)
    assert len({tuple(one.tokens) for one in together}) > 3
    for row, found in zip(rows, together, strict=True):
        (alone,) = model.generate([row], beam=beam, max_new_tokens=12)
        assert (alone.tokens, alone.finish_reason) == (found.tokens, found.finish_reason)
        np.testing.assert_allclose([alone.score, *alone.token_logprobs], [found.score, *found.token_logprobs], rtol=0, atol=4e-6)


def test_int8_weight_is_made_by_export_and_by_quantize(plain_bundle: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    made = plain_bundle.path
    added = shutil.copytree(bundle.path, tmp_path / "added")
    (link := tmp_path / "link").symlink_to(added)
    result = invoke("quantize", link, "--precision", "int8-weight", "--json", "-q")
    assert result.exit_code == 0 and link.is_symlink(), result.output
    one, other = Bundle.open(made, verify=True), Bundle.open(added, verify=True)
    assert list(one.variants) == ["fp32", "int8-weight"] and list(other.variants) == ["fp32", "fp16", "int8", "int8-weight"]
    for name in one.variants["int8-weight"].files:
        assert one.files[name] == other.files[name], name
    plan = one.variants["int8-weight"].plan
    assert plan == other.variants["int8-weight"].plan
    assert plan and all(scheme.startswith("int8-blocks") for scheme in plan.values())
    answers = json.loads(invoke("run", made, "--precision", "int8-weight", "--json", "a b c", "one two").stdout)["results"]
    assert [set(answer) for answer in answers] == [{"text", "tokens", "score", "finish_reason"}] * 2
    assert invoke("verify", made, "-q").exit_code == 0


def test_the_plan_of_int8_names_rows(bundle: Bundle) -> None:
    plan = bundle.variants["int8"].plan
    assert set(plan.values()) == {"int8-rows"}
    assert "source_embedding.weight" in plan
    assert bundle.files["int8/weights.bin"].bytes < 0.4 * bundle.files["fp32/weights.bin"].bytes
