"""One variant that fails its checks never costs the others: the rest is published, the manifest says what failed, the exit code is 3."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.build.stages import add_variant, build
from onnxport.errors import BundleError, CheckFailed, FusionError, ParityError
from onnxport.quantize.precisions import PRECISIONS
from onnxport.runtime.bundle.reader import Bundle
from support.commands import assert_refused, invoke


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of one product: no trace comes before its variants are made."""
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 64]) for name in "xy"]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "weight")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "product", numbers[:1], numbers[1:], [weight])
    path = tmp_path / "source" / "product.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """fp16 has a bound that it cannot keep."""
    row = PRECISIONS["fp16"]
    with monkeypatch.context() as patch:
        patch.setitem(PRECISIONS, "fp16", replace(row, bounds=replace(row.bounds, relative_error=1e-9)))
        yield patch


@pytest.mark.usefixtures("failing")
def test_the_others_are_published_and_the_next_is_the_default(source: Path, tmp_path: Path) -> None:
    bundle = build(source, tmp_path / "out", precision=("fp16", "int8-weight", "fp32"))
    assert list(bundle.variants) == ["int8-weight", "fp32"] and bundle.default == "int8-weight"
    assert list(bundle.failed) == ["fp16"]
    assert bundle.failed["fp16"].startswith("relative_error is ") and bundle.failed["fp16"].endswith("expected at most 1e-09")
    assert bundle.unlisted() == [] and not (tmp_path / "out" / "fp16").exists()


@pytest.mark.usefixtures("failing")
def test_the_command_says_it_and_ends_with_3(source: Path, tmp_path: Path) -> None:
    result = invoke("export", source, "--out", tmp_path / "out", "--precision", "fp32,fp16", "--json", "-q")
    assert result.exit_code == 3
    failed, published = result.stderr.strip().splitlines()
    assert failed.startswith("onnxport: variant fp16 failed: relative_error is ")
    assert published == f"onnxport: {tmp_path / 'out'} is published with fp32, without fp16"
    assert list(json.loads(result.stdout)["failed"]) == ["fp16"]
    shown = invoke("inspect", tmp_path / "out")
    assert shown.exit_code == 0 and "failed: fp16: relative_error is " in shown.stdout
    assert json.loads(invoke("inspect", tmp_path / "out", "--json").stdout)["failed"] == json.loads(result.stdout)["failed"]
    assert invoke("verify", tmp_path / "out", "-q").exit_code == 0


@pytest.mark.parametrize("precisions", [("fp16",), ("fp32", "fp16")])
def test_without_a_variant_that_passes_there_is_no_bundle(
    source: Path, tmp_path: Path, failing: pytest.MonkeyPatch, precisions: tuple[str, ...]
) -> None:
    row = PRECISIONS["fp32"]
    failing.setitem(PRECISIONS, "fp32", replace(row, bounds=replace(row.bounds, relative_error=-1.0)))
    with pytest.raises(ParityError, match=f"variant {precisions[0]}: relative_error is"):
        build(source, tmp_path / "out", precision=precisions)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_graph_that_did_not_fuse_costs_its_own_variant_alone(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def made_last(*_: object) -> None:
        made.append(1)
        if len(made) == 2:
            raise FusionError("the graph has no kernel; report this")

    monkeypatch.setattr("onnxport.build.variant.min_onnxruntime", made_last)
    bundle = build(source, tmp_path / "out", precision=("fp32", "fp16", "int8-weight"))
    assert list(bundle.variants) == ["fp32", "int8-weight"] and dict(bundle.failed) == {"fp16": "the graph has no kernel"}


def test_a_bundle_that_has_the_variant_is_not_replaced(source: Path, tmp_path: Path, failing: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with failing.context() as before:
        before.setitem(PRECISIONS, "fp16", replace(PRECISIONS["fp16"], bounds=PRECISIONS["int8"].bounds))
        build(source, out, precision=("fp32", "fp16"))
    manifest = (out / "bundle.json").read_bytes()
    command = ("export", source, "--out", out, "--precision", "fp32,fp16", "--force", "-q")
    assert_refused(invoke(*command), 3, "variant fp16: relative_error is", f"{out} has fp16 and stays as it was", "--keep-going")
    assert (out / "bundle.json").read_bytes() == manifest
    assert invoke(*command, "--keep-going").exit_code == 3
    assert list(Bundle.open(out).variants) == ["fp32"] and list(Bundle.open(out).failed) == ["fp16"]
    assert invoke(*command).exit_code == 3  # what failed before is no loss
    assert json.loads((out / "bundle.json").read_text())["failed"]


def test_an_interrupted_export_remembers_what_failed(source: Path, tmp_path: Path, failing: pytest.MonkeyPatch) -> None:
    out, precisions = tmp_path / "out", ("fp32", "fp16", "int8-weight")

    def interrupted(stage: str) -> None:
        if stage.startswith("make and check int8-weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, precision=precisions, resume=True, progress=interrupted)
    stages: list[str] = []
    bundle = build(source, out, precision=precisions, resume=True, progress=stages.append)
    assert "make and check fp16" not in stages and "make and check int8-weight" in stages
    assert list(bundle.variants) == ["fp32", "int8-weight"] and bundle.failed["fp16"].startswith("relative_error is ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_work_stays_where_nothing_is_replaced(source: Path, tmp_path: Path, failing: pytest.MonkeyPatch) -> None:
    out, precisions = tmp_path / "out", ("fp32", "fp16")
    with failing.context() as before:
        before.setitem(PRECISIONS, "fp16", replace(PRECISIONS["fp16"], bounds=PRECISIONS["int8"].bounds))
        build(source, out, precision=precisions)
    with pytest.raises(CheckFailed, match="stays as it was"):
        build(source, out, precision=precisions, force=True, resume=True)
    stages: list[str] = []
    bundle = build(source, out, precision=precisions, force=True, keep_going=True, resume=True, progress=stages.append)
    assert list(bundle.variants) == ["fp32"] and not any(stage.startswith("make and check") for stage in stages)


def test_a_failed_variant_that_is_added_later_has_failed_no_more(source: Path, tmp_path: Path, failing: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    build(source, out, precision=("fp32", "fp16"))
    with pytest.raises(ParityError):
        add_variant(out, "fp16")
    assert list(Bundle.open(out).failed) == ["fp16"]
    failing.setitem(PRECISIONS, "fp16", replace(PRECISIONS["fp16"], bounds=PRECISIONS["int8"].bounds))
    bundle = add_variant(out, "fp16")
    assert list(bundle.variants) == ["fp32", "fp16"] and not bundle.failed


def test_a_manifest_whose_failed_are_no_reasons_is_refused(source: Path, tmp_path: Path) -> None:
    out = build(source, tmp_path / "out", precision=("fp32",)).path
    manifest = json.loads((out / "bundle.json").read_text())
    (out / "bundle.json").write_text(json.dumps(manifest | {"failed": {"fp16": 3}}))
    with pytest.raises(BundleError, match="failed must map names to reasons"):
        Bundle.open(out)
