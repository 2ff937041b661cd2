"""The package itself: what importing it costs, and that `load` is at its top."""

import subprocess
import sys
from fnmatch import fnmatch

import pytest


def modules_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.split())


def test_load_is_the_runtime_s() -> None:
    import onnxport
    from onnxport import load
    from onnxport.runtime import load as runtime_load

    assert load is runtime_load
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxport.nothing


@pytest.mark.parametrize("module", ["onnxport", "onnxport.cli.commands", "onnxport.quantize.precisions"])
def test_importing_is_light(module: str) -> None:
    assert not {"numpy", "tokenizers", "onnxruntime", "onnx", "torch"} & modules_after(f"import {module}")


def test_importing_build_loads_neither_torch_nor_onnx() -> None:
    assert not {"onnxruntime", "onnx", "onnx_ir", "torch"} & modules_after("import onnxport.build")


def test_tests_of_every_folder_are_collected(pytestconfig: pytest.Config) -> None:
    """pytest passes over some folders by their names, such as `build`, unless it is told otherwise."""
    folders = {path.parent for path in (pytestconfig.rootpath / "tests").rglob("test_*.py")}
    passed_over = pytestconfig.getini("norecursedirs")
    names = {part for folder in folders for part in folder.relative_to(pytestconfig.rootpath).parts}
    assert "build" in names
    assert not [name for name in names if any(fnmatch(name, pattern) for pattern in passed_over)]
