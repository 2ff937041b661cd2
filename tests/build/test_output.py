"""What export writes: whole or not at all, and the same bytes wherever it is made."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxport.build import stages
from onnxport.errors import OutputError
from onnxport.runtime.bundle.reader import Bundle
from support.commands import COMMAND, assert_refused, invoke, started
from support.paths import ROOT
from support.product_file import write_product


def test_existing_output_is_refused_without_force(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    assert_refused(invoke("export", model_folder, "--out", out, "-q"), 6, "--force")


def test_a_variant_that_another_command_added_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    stages.build(write_product(tmp_path / "product.onnx"), out, precision=("fp32", "fp16"))
    before = SimpleNamespace(variants={"fp32": None})
    monkeypatch.setattr(stages, "Bundle", SimpleNamespace(open=lambda path: before))
    with pytest.raises(OutputError) as caught:
        stages.add_variant(out, "fp16")
    assert str(caught.value).startswith(f"{out} has a variant fp16 already")


def test_output_below_a_file_cannot_be_written(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(invoke("export", model_folder, "--out", tmp_path / "file" / "x", "-q"), 6, "file")


def test_full_disk_during_export_leaves_nothing(tmp_path: Path) -> None:
    source = write_product(tmp_path / "product.onnx")

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # writing on fails as it does on a full disk

    command = [*COMMAND, "export", str(source), "--out", str(tmp_path / "x"), "--precision", "fp32", "-q"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files_only, timeout=120)
    assert result.returncode == 6, result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_interrupt_during_export_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "export", str(model_folder), "--out", str(tmp_path / "x")]
    with started(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert any(tmp_path.iterdir()), "the export did not begin to write"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().splitlines()[-1] == "onnxport: interrupted"
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)  # a whole export in another process
def test_same_bytes_from_two_folders(model_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model_folder, tmp_path / "elsewhere" / "tiny"))
    command = [*COMMAND, "export", source.name, "--out", str(tmp_path / "again"), "-q"]
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    subprocess.run(command, check=True, cwd=source.parent, stdout=subprocess.DEVNULL, env=environment, timeout=240)
    again = Bundle.open(tmp_path / "again")
    assert again.files == bundle.files and again.provenance["source"] == bundle.provenance["source"]
    for file in again.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content, file
            assert os.fsencode(ROOT) not in content, file


def test_every_variant_names_the_oldest_onnx_runtime_that_runs_it(bundle: Bundle) -> None:
    for name, variant in bundle.variants.items():
        assert variant.min_onnxruntime is not None, name
