"""Names of variants with a target, and which variant a device means."""

import json
import shutil
from pathlib import Path

import pytest

from onnxport.compare.comparison import entrants
from onnxport.compare.gates import parse_gate
from onnxport.errors import BundleError, DeviceError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import for_device, named, split, suits

NAMES = ["fp32", "int8", "int8@cuda", "int8@web"]


def test_a_name_is_a_precision_and_a_target() -> None:
    for name, parts in (("int8", ("int8", "cpu")), ("int8@cuda", ("int8", "cuda"))):
        assert split(name) == parts and named(*parts) == name


def test_a_device_means_its_own_variant() -> None:
    assert [for_device(name, "cuda", NAMES) for name in NAMES] == ["fp32", "int8@cuda", "int8@cuda", "int8@web"]
    assert [for_device(name, "cpu", NAMES) for name in NAMES] == NAMES
    assert [name for name in NAMES if suits(name, "cuda", NAMES)] == ["fp32", "int8@cuda"]
    assert [name for name in NAMES if suits(name, "cpu", NAMES)] == ["fp32", "int8"]


@pytest.fixture
def targeted(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with some of these variants; CUDA seems to be there."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    manifest = json.loads((path / "bundle.json").read_text())
    entry = manifest["variants"]["fp32"]
    targets = {"fp32": "any", "int8": "cpu", "int4": "cpu", "int8@cuda": "cuda", "int8@web": "web"}
    manifest["variants"] = {name: {**entry, "target": target} for name, target in targets.items()}
    manifest["variants"]["fp32"]["min_onnxruntime"] = "1.32"
    (path / "bundle.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    return path


def test_what_a_device_lacks_is_told_with_the_command_that_makes_it(targeted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"int4 of .* is made of the cpu's kernels, .*: onnxport quantize .* --precision int4@cuda"):
        load(targeted, precision="int4", device="cuda")
    monkeypatch.setattr("onnxruntime.__version__", "1.31.1")
    with pytest.raises(BundleError, match=r"needs onnxruntime 1.32 or newer, found 1.31.1; upgrade .*, or .* --precision fp32@cuda"):
        load(targeted, precision="fp32", device="cuda")


def test_a_variant_for_the_web_runs_on_the_cpu_where_it_is_named(targeted: Path) -> None:
    with load(targeted, precision="int8@web", threads=1) as model:
        assert model.precision == "int8@web"
    with pytest.raises(DeviceError, match="int8@cuda of .* runs on cuda only"):
        load(targeted, precision="int8@cuda")


def test_a_comparison_takes_the_variants_of_its_device(targeted: Path) -> None:
    bundle = Bundle.open(targeted)
    assert list(entrants(bundle, {}, None, reference=True)) == ["fp32", "int8", "int4"]
    assert list(entrants(bundle, {}, None, reference=True, device="cuda")) == ["fp32", "int4", "int8@cuda"]
    assert list(entrants(bundle, {}, ["int8", "int8@web"], reference=True, device="cuda")) == ["fp32", "int8@cuda", "int8@web"]


def test_gates_take_such_names() -> None:
    gate = parse_gate("int8@cuda.speedup>=1.5")
    assert gate.split(["int8", "int8@cuda"]) == ("int8@cuda", "speedup")
