"""The table of precisions, and the documents that list its rows."""

from dataclasses import asdict

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
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables("docs/parity.md").splitlines()]
    head, _, *rows = lines[: [line[0] for line in lines].index("model")]  # the table behind it is of measurements
    metrics = [cell.split("`")[1] for cell in head[1:]]
    found = {name: dict(zip(metrics, map(float, bounds), strict=True)) for names, *bounds in rows for name in names.split(", ")}
    assert found == {name: {key: value for key, value in asdict(row.bounds).items() if key != "always"} for name, row in PRECISIONS.items()}


def test_bounds_are_those_of_what_was_measured() -> None:
    bounds = PRECISIONS["int8"].bounds
    generates = {"relative_error": 0.5, "kl": 0.0, "top1_agreement": 1.0, "perplexity_change": 0.0, "greedy_agreement": 1.0}
    assert bounds.of(generates) == {"kl": 0.01, "top1_agreement": 0.94, "perplexity_change": 0.02}
    assert bounds.of({"relative_error": 0.5, "cosine": 1.0, "cosine_least": 1.0}) == {"cosine": 0.99}
    assert bounds.of({"relative_error": 0.5, "cosine": None}) == {"relative_error": 0.1}
    assert PRECISIONS["fp32"].bounds.of({"relative_error": 0.0, "cosine": 1.0}) == {"relative_error": 1e-4, "cosine": 0.999999}


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
