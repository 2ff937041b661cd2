"""The table of a bundle has the figures that its variants were judged by, in plain words."""

import json
from pathlib import Path
from typing import Any

import pytest

from onnxport.cli.overview import overview, parity_line
from onnxport.runtime.bundle.reader import Bundle
from support import tiny_bundles

PLAIN: dict[str, Any] = {"max_abs_diff": 0.25, "relative_error": 0.012, "greedy_agreement": 0.85}
ON_TEXT = PLAIN | {"kl": 0.00312, "top1_agreement": 0.9551, "perplexity_change": -0.0024, "perplexity": 19.5}
VECTORS: dict[str, Any] = {"relative_error": 0.062, "cosine": 0.998521, "cosine_least": 0.99738, "greedy_agreement": None}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tiny_bundles.write_bundle(tmp_path / "bundle", tiny_bundles.TinyModel("causal"))


def shown(path: Path, parity: dict[str, Any], **more: Any) -> list[str]:
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["variants"]["fp32"]["parity"] = parity
    (path / "bundle.json").write_text(json.dumps(manifest | more))
    return overview(Bundle.open(path)).splitlines()


@pytest.mark.parametrize(
    ("parity", "head", "row"),
    [
        (PLAIN, ["max", "diff", "rel.", "error", "same", "greedy"], ["2.5e-01", "1.2e-02", "85%"]),
        (
            ON_TEXT,
            ["KL", "same", "top", "perplexity", "rel.", "error", "same", "greedy"],
            ["3.1e-03", "95.5%", "-0.24%", "1.2e-02", "85%"],
        ),
        (VECTORS, ["cosine", "least", "rel.", "error"], ["0.99852", "0.99738", "6.2e-02"]),
    ],
)
def test_columns_are_those_that_were_measured(copy: Path, parity: dict[str, Any], head: list[str], row: list[str]) -> None:
    lines = shown(copy, parity)
    place = next(i for i, line in enumerate(lines) if line.startswith("variant "))
    assert lines[place].split()[:4] == ["variant", "size", "of", "fp32"] and lines[place].split()[4:] == [*head, "fusions"]
    assert lines[place + 1].split()[4:] == [*row, "-"]
    assert any("on golden texts" in line for line in lines) == (parity is not PLAIN)


def test_labels_are_explained_where_there_are_some(copy: Path) -> None:
    told = "  on golden texts: the mean and the least cosine"
    assert told in shown(copy, VECTORS)
    assert f"{told}, the same label where the original is decided" in shown(copy, VECTORS | {"label_agreement": 0.98})


def test_what_failed_is_shown_with_its_reason(copy: Path) -> None:
    assert "failed: int8: kl is 0.2, expected at most 0.01" in shown(copy, PLAIN, failed={"int8": "kl is 0.2, expected at most 0.01"})
    assert not any(line.startswith("failed") for line in shown(copy, PLAIN, failed={}))


def test_figures_in_words() -> None:
    assert parity_line(ON_TEXT) == (
        "divergence in nats a token 3.1e-03, same most probable token 95.5%, perplexity -0.24%, largest difference 2.5e-01, "
        "relative error 1.2e-02, same greedy tokens 85%"
    )
    assert parity_line({"finite": True, "cases": 3, "greedy_agreement": None}) == ""
