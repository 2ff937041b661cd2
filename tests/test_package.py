"""The package itself: what importing it costs, and that `load` is at its top."""

import subprocess
import sys

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
