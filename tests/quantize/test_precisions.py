"""The table of precisions, and the documents that list its rows."""

import pytest

from onnxport.errors import DeviceError
from onnxport.quantize.plan import Plan
from onnxport.quantize.precisions import DEFAULT, PRECISIONS, device_of
from support.paths import ROOT


def tables(document: str) -> str:
    return "\n".join(line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if line.startswith("|"))


@pytest.mark.parametrize("document", ["docs/precisions.md", "README.md"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_is_documented(name: str, document: str) -> None:
    assert f"`{name}`" in tables(document)


def test_the_bounds_are_those_of_the_document() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables("docs/parity.md").splitlines()[2:]]
    assert {name: float(bound) for names, bound in rows for name in names.split(", ")} == {
        name: row.relative_error for name, row in PRECISIONS.items()
    }


def test_the_default_ones_are_the_readme_s() -> None:
    assert "| `" + "`, `".join(DEFAULT) + "` | the default three" in tables("README.md")


def test_data_is_needed_exactly_where_a_plan_is_calibrated_or_searched() -> None:
    for row in PRECISIONS.values():
        assert (row.calibration == "needed") == (row.plan is None or bool(row.plan.needs)), row.name


@pytest.mark.parametrize(
    ("schemes", "target"),
    [({"*": "fp32"}, "any"), ({"*": "fp16", "a": "fp32"}, "any"), ({"*": "bf16"}, "cuda"), ({"*": "fp32", "a": "int8-rows"}, "cpu")],
)
def test_targets(schemes: dict[str, str], target: str) -> None:
    assert device_of(Plan(schemes)) == target


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    PRECISIONS["int8"].check_device()
    with pytest.raises(DeviceError, match="bf16 runs on CUDA only"):
        PRECISIONS["bf16"].check_device()
