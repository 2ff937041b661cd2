"""Language models whose key/value caches have 8 bits, from the command to their answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.verify import verify
from support.causal_folders import write
from support.commands import invoke
from support.once import made_once


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Llama of two layers with heads of 16, exported with `--kv int8`."""

    def make(made: Path) -> None:
        write(made / "llama", "llama", hidden_size=64)
        result = invoke("export", made / "llama", "--out", made / "out", "--precision", "fp32,int8", "--kv", "int8", "-q")
        assert result.exit_code == 0, result.output

    return Bundle.open(made_once(tmp_path_factory, "int8-cache", make) / "out")


def test_the_manifest_says_whose_cache_has_8_bits(bundle: Bundle) -> None:
    plain, small = bundle.variants["fp32"], bundle.variants["int8"]
    assert "kv" not in plain.plan and plain.target == "any"
    assert small.plan["kv"] == "int8" and small.target == "cpu" and small.min_onnxruntime == "1.32"
    notes = " ".join(bundle.provenance["notes"])
    assert "key/value caches are int8; fp32 keep their own" in notes and "--calibrate FILE finds them on texts" in notes
    assert "int8: key/value cache int8" in invoke("inspect", bundle.path).output


def test_the_runtime_keeps_a_quarter_of_the_bytes(bundle: Bundle) -> None:
    sizes = []
    for name in ("fp32", "int8"):
        engine = load(bundle.path, precision=name).engine
        assert engine is not None
        cache = engine.new_cache()
        cache.allocate(3, 64)
        sizes.append(sum(array.nbytes for array in cache.arrays))
    assert sizes[0] == 4 * sizes[1]


def test_answers_do_not_depend_on_company(bundle: Bundle) -> None:
    """Ragged batches, rows that come and go, and beams, which copy rows of the cache."""
    model = load(bundle.path, precision="int8")
    prompts = [[1, 5, 9, 11, 40, 41], [1, 60], [1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [1, 33, 34]]
    for options in ({"beam": 1}, {"beam": 3}):
        together = model.generate(prompts, max_new_tokens=12, **options)
        alone = [model.generate([prompt], max_new_tokens=12, **options)[0] for prompt in prompts]
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_golden_answers_are_replayed(bundle: Bundle) -> None:
    found = verify(bundle.path)["variants"]["int8"]
    recorded = bundle.variants["int8"].parity
    np.testing.assert_allclose(found["relative_error"], recorded["relative_error"], rtol=0.2)
    assert 0 < recorded["relative_error"] < 0.1
    assert bundle.variants["int8"].evidence["layers"]  # the probe of layers reads such caches too


def test_a_plan_asks_for_it(bundle: Bundle, tmp_path: Path) -> None:
    """On weights in float32 too; the variant's own plan makes the same bytes again."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"*": "fp32", "kv": "int8"}))
    assert invoke("quantize", bundle.path, "--precision", "auto", "--plan", plan, "-q").exit_code == 0
    made = Bundle.open(bundle.path)
    assert made.variants["auto"].plan == {"*": "fp32", "kv": "int8"} and made.variants["auto"].target == "cpu"
    assert 0 < made.variants["auto"].parity["relative_error"] < made.variants["int8"].parity["relative_error"]
    again = invoke("quantize", bundle.path, "--precision", "int8", "--plan", bundle.path / "int8" / "plan.json", "--force", "-q")
    assert again.exit_code == 0, again.output
    files = bundle.variants["int8"].files
    other = Bundle.open(bundle.path)
    assert {name: other.files[name].sha256 for name in files} == {name: bundle.files[name].sha256 for name in files}


@pytest.mark.parametrize(
    ("precision", "plan", "message"),
    [
        ("fp16", {"*": "fp16", "kv": "int8"}, "the plan mixes fp16 and a cache of int8"),
        ("int8", {"*": "int8-rows", "kv": "int4"}, "kv is 'int4', expected int8"),
        ("fp16", {"*": "fp32", "kv": "int8"}, "fp16 keeps its own cache; leave kv out of the plan"),
    ],
)
def test_plans_that_cannot_be_are_refused(bundle: Bundle, tmp_path: Path, precision: str, plan: dict[str, str], message: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    result = invoke("quantize", bundle.path, "--precision", precision, "--plan", file, "--force", "-q")
    assert result.exit_code == 2 and message in result.output


def test_a_translation_model_is_refused(plain_bundle: Bundle) -> None:
    result = invoke("quantize", plain_bundle.path, "--precision", "int8", "--kv", "int8", "--force", "-q")
    assert result.exit_code == 4 and "this model has an encoder beside its decoder; leave --kv out" in result.output
