"""The options of a build: what is refused before any work, and in what words."""

from pathlib import Path

import pytest

from onnxport.build.request import BuildOptions, search_folder, variants
from onnxport.errors import UsageError
from onnxport.quantize.precisions import PRECISIONS

FILE = Path("data.tsv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(()), "no precision is named: expected some of fp32, fp16, "),
        (BuildOptions(("fp32", "int3")), "precision 'int3' is not known: expected some of fp32, "),
        (BuildOptions(("auto",), plan=FILE, budget="bleu_drop<=1"), "--plan: it is carried out as it stands"),
        (BuildOptions(("int8",), budget="bleu_drop<=1"), "--budget: int8 take none; leave it out, or ask for --precision auto"),
        (BuildOptions(("auto",), calibrate=FILE, budget="bleu_drop"), "is not a gate"),
        (BuildOptions(("int8",), data=FILE), "--data: only the search of --precision auto"),
        (BuildOptions(("int8", "int8-static")), "int8-static is calibrated on data: give --calibrate FILE"),
        (BuildOptions(("fp32", "fp16"), kv="int8"), "--kv: fp32, fp16 keep their own caches; name a precision of 8 or 4 bits beside them"),
        (BuildOptions(("int8",), kv="int4"), "--kv int4: expected int8"),
        (BuildOptions(("fp32",), calibrate=FILE), "--calibrate: fp32 need no calibration data; leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: BuildOptions, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.check()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [name for name, row in PRECISIONS.items() if row.device is None])
def test_every_precision_is_taken_with_what_it_needs(name: str) -> None:
    row = PRECISIONS[name]
    BuildOptions((name,), calibrate=None if row.calibration == "unused" else FILE).check()
    BuildOptions((name,), plan=FILE, calibrate=FILE).check()


def test_a_new_bundle_is_calibrated_through_its_own_fp32() -> None:
    with pytest.raises(UsageError, match="add fp32 to --precision"):
        BuildOptions(("int8",), calibrate=FILE).check_new_bundle()
    BuildOptions(("int8", "fp32"), calibrate=FILE).check_new_bundle()


def test_variants_are_named_by_precision_and_target() -> None:
    assert variants(("fp32", "int8"), ("cpu", "web")) == (("fp32", "int8", "fp32@web", "int8@web"), [])
    assert variants(("fp32", "int8@cuda"), ("cpu",)) == (("fp32", "int8@cuda"), [])
    assert variants(("int8", "int8-static"), ("cpu", "cuda")) == (("int8", "int8-static", "int8@cuda"), ["int8-static@cuda"])


@pytest.mark.parametrize(
    ("precisions", "targets", "message"),
    [
        (("fp32",), ("tpu",), "--target 'tpu': expected some of cpu, cuda, web"),
        (("fp32@tpu",), ("cpu",), "target 'tpu' is not known: expected some of cpu, cuda, web"),
        (("int3@cuda",), ("cpu",), "precision 'int3' is not known"),
        (("int8-static",), ("cuda",), "int8-static@cuda: cuda has no kernels for int8-static, expected one of fp32, fp16, int8, "),
        (("int8", "auto@web"), ("cpu",), "auto@web: web has no kernels for auto"),
        (("bf16@web",), ("cpu",), "bf16@web: web has no kernels for bf16"),
    ],
)
def test_what_a_target_cannot_have_is_refused(precisions: tuple[str, ...], targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        variants(precisions, targets)
    assert message in str(caught.value)


def test_caches_of_other_targets_keep_their_type() -> None:
    with pytest.raises(UsageError, match="int8@cuda keep their own caches"):
        BuildOptions(("int8@cuda",), kv="int8").check()


def test_a_search_is_kept_beside_its_bundle(tmp_path: Path) -> None:
    assert search_folder(tmp_path / "en-de") == tmp_path / "en-de.search"
