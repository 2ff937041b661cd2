"""The installed wheel, in an environment without torch: what an application gets."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

BUNDLE = os.environ["ONNXPORT_BUNDLE"]


HEAVY = {"torch", "onnx", "click", "rich", "scipy", "pandas", "transformers", "yaml", "requests", "sacrebleu", "sympy"}


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).parent / "onnxport"
    return subprocess.run([command, *arguments], input=stdin, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxscript", "transformers"])
def test_environment_is_without(name: str) -> None:
    assert importlib.util.find_spec(name) is None


def test_package_comes_from_the_wheel() -> None:
    import onnxport.runtime

    assert "site-packages" in (onnxport.runtime.__file__ or "")
    assert importlib.util.find_spec("runtime") is None


def test_the_wheel_holds_every_package() -> None:
    import onnxport

    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    root = Path(onnxport.__file__ or "").parent.parent
    assert all((root.joinpath(*name.split(".")) / "__init__.py").is_file() for name in listed)
    assert sorted(listed) == sorted(".".join(file.parent.relative_to(root).parts) for file in (root / "onnxport").rglob("__init__.py"))


def test_runtime_imports_nothing_heavier_than_its_three_packages() -> None:
    script = (
        "import sys; from onnxport.runtime import load; "
        f"load({BUNDLE!r}).generate(['How are you?'], max_new_tokens=2); "
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_answers_a_sentence(precision: str) -> None:
    result = run("run", BUNDLE, "--precision", precision, "--json", "Where is the station?")
    assert result.returncode == 0, result.stderr
    text = json.loads(result.stdout)["results"][0]["text"]
    assert "Bahnhof" in text


def test_answers_standard_input_line_by_line() -> None:
    result = run("run", BUNDLE, stdin="I am tired.\n\nThank you.\n")
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[1] == ""
    assert lines[0] and lines[2]


@pytest.mark.parametrize("command", ["inspect", "verify", "doctor"])
def test_commands_that_need_no_torch(command: str) -> None:
    result = run(command, *([] if command == "doctor" else [BUNDLE]))
    assert result.returncode == 0, result.stderr


def test_export_names_the_missing_extra() -> None:
    result = run("export", BUNDLE, "--out", "nowhere")
    assert result.returncode == 2
    assert "onnxport[export]" in result.stderr
    assert "Traceback" not in result.stderr
