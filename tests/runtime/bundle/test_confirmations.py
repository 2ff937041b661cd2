"""confirmations.json: what a device confirmed, beside what is hashed, and of variants as they are now alone."""

import json
import shutil
from pathlib import Path

import pytest

from onnxport.errors import BundleError
from onnxport.runtime.bundle.confirmations import confirmations, record
from onnxport.runtime.bundle.reader import CONFIRMATIONS, Bundle
from onnxport.runtime.bundle.writer import extended_bundle
from onnxport.runtime.verify import verify
from support.commands import assert_refused, invoke

PARITY = {"relative_error": 1e-6, "finite": True}


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_a_bundle_has_none_at_first(copy: Path) -> None:
    assert confirmations(Bundle.open(copy)) == {}


def test_what_is_recorded_is_no_part_of_the_bundle(copy: Path) -> None:
    before = (copy / "bundle.json").read_bytes()
    bundle = Bundle.open(copy)
    for gpu in ("one", "other", "one"):
        record(bundle, "cuda", {"fp32": PARITY}, {"gpu": gpu})
    found = confirmations(bundle)["fp32"]
    assert [(one["machine"]["gpu"], one["device"], one["parity"]) for one in found] == [("other", "cuda", PARITY), ("one", "cuda", PARITY)]
    assert (copy / "bundle.json").read_bytes() == before
    assert verify(copy, threads=1)["unlisted"] == []


def test_a_variant_that_was_made_anew_is_not_confirmed(copy: Path) -> None:
    record(Bundle.open(copy), "cuda", {"fp32": PARITY}, {})
    with extended_bundle(copy) as staging:
        (staging.path / "notes.txt").write_text("more")
    assert "fp32" in confirmations(Bundle.open(copy))  # the same variant in a bundle that was written again
    with extended_bundle(copy) as staging:
        assert staging.manifest is not None
        (staging.path / "fp32/plan.json").write_text("{}")
        staging.manifest["variants"]["fp32"]["files"].append("fp32/plan.json")
    assert (copy / CONFIRMATIONS).is_file() and confirmations(Bundle.open(copy)) == {}


def test_a_file_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / CONFIRMATIONS).write_text("{")
    with pytest.raises(BundleError, match="confirmations.json: cannot be read as JSON"):
        confirmations(Bundle.open(copy))


def test_the_command_records_what_it_replayed(copy: Path) -> None:
    assert_refused(invoke("verify", copy, "--record"), 2, "--record is about a device: give --device too")
    assert invoke("verify", copy, "--device", "cpu", "--record", "-q").exit_code == 0
    (entry,) = json.loads((copy / CONFIRMATIONS).read_text())["fp32"]
    assert entry["device"] == "cpu" and entry["parity"]["relative_error"] < 1e-4 and "onnxruntime" in entry["machine"]["versions"]
