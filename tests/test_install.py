"""The wheel, installed, is what a process imports that runs in the root of a clone: no folder there hides a part of the package."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.paths import ROOT

SOURCES = ("src", "compare", "export", "graph", "integrations", "quantize", "runtime", "serve", "pyproject.toml", "README.md", "LICENSE")
MODULES = (
    "onnxport.runtime", "onnxport.runtime.model", "onnxport.compare.comparison", "onnxport.graph.edit", "onnxport.quantize.recipe",
    "onnxport.quantize.auto.search", "onnxport.export.adapters", "onnxport.export.stages", "onnxport.build.variant",
    "onnxport.integrations.sentence_transformers", "onnxport.serve.tasks", "onnxport.cli.commands", "onnxport.__main__",
)  # fmt: skip


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.timeout(240)
def test_an_installed_wheel_is_imported_in_the_root_of_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in SOURCES:  # a copy: a build leaves files behind
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, clone / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, clone, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind the wheel: torch, onnx and all else
    script = f"import importlib\nfor name in {MODULES!r}: print(importlib.import_module(name).__file__)"
    files = run(python, "-c", script, cwd=ROOT).splitlines()
    assert len(files) == len(MODULES)
    for file in files:
        assert Path(file).is_relative_to(site), f"{file} is not the installed one"
