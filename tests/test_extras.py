"""Optional packages: one that is missing is named with its extra, and nothing else passes for one."""

import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.errors import UsageError
from onnxport.extras import require


def test_a_module_that_is_there_is_returned() -> None:
    assert require("json.decoder", "export").__name__ == "json.decoder"


def test_a_missing_module_is_named_with_its_extra() -> None:
    with pytest.raises(UsageError, match=r"a chat needs no_such_package .*pip install 'onnxport\[chat\]'") as caught:
        require("no_such_package.part", "chat", "a chat")
    assert caught.value.exit_code == 2


def test_an_import_error_inside_an_optional_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"needs half_installed \(.*no_such_dependency.*\): pip install 'onnxport\[export\]'"):
        require("half_installed", "export")


@pytest.mark.parametrize("line", ["import onnxport.no_such_part", "from onnxport.errors import NoSuchError"])
def test_an_import_error_inside_onnxport_is_not_hidden(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "broken_" + line.split()[0]
    (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError):
        require(name, "export")


def test_an_export_without_torch_ends_with_code_2() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['onnxport', 'export', 'source', '--out', 'nowhere']; "
        "from onnxport.cli.commands import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("onnxport: this command needs torch (") and "onnxport[export]" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_run_without_onnxruntime_ends_with_code_2_and_names_both_extras() -> None:
    script = "import sys; sys.modules['onnxruntime'] = None\nfrom onnxport.runtime.sessions import Sessions\nSessions.on('cpu')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("onnxport.errors.UsageError: running a model needs onnxruntime")
    assert "'onnxport[cpu]' or 'onnxport[gpu]'" in last and "in a clone, '.[cpu]'" in last
