"""What a model's own generation settings mean to the commands: they hold unless an option says otherwise, for every side alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from onnxport.compare.protocol.bundle_side import BundleSide
from onnxport.runtime.bundle.reader import Bundle
from support.commands import assert_refused, invoke

TEXTS = ["a b c", "one two three", "f", "x y z four", "k l m n o p"]


def settled(bundle: Bundle, out: Path, **own: Any) -> Path:
    """A copy whose model has generation settings of its own."""
    path = Path(shutil.copytree(bundle.path, out))
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["generation"] |= own
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


def answers(path: Path, *options: Any) -> list[dict[str, Any]]:
    result = invoke("run", path, "--json", *options, *TEXTS)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["results"]
    return found


def test_run_uses_the_models_own_beams(bundle: Bundle, tmp_path: Path) -> None:
    path = settled(bundle, tmp_path / "beams", beam=3, length_penalty=0.5, min_new_tokens=4, repetition_penalty=1.3)
    own = answers(path)
    said = answers(bundle.path, "--beam", 3, "--length-penalty", 0.5, "--min-new-tokens", 4, "--repetition-penalty", 1.3)
    assert own == said != answers(bundle.path)


def test_options_go_before_the_models_own(bundle: Bundle, tmp_path: Path) -> None:
    path = settled(bundle, tmp_path / "beams", beam=3, length_penalty=0.5, min_new_tokens=4, repetition_penalty=1.3)
    plain = answers(path, "--beam", 1, "--length-penalty", 1, "--min-new-tokens", 0, "--repetition-penalty", 1)
    assert plain == answers(bundle.path) != answers(path)


def test_help_tells_that_the_model_decides() -> None:
    for command, options in {
        "run": ("--beam", "--length-penalty", "--min-new-tokens", "--repetition-penalty"),
        "compare": ("--beam",),
    }.items():
        text = " ".join(invoke(command, "--help").output.split())
        for option in options:
            entry = text.split(f" {option} ")[1].split(" --")[0]
            assert "model's own" in entry, (command, option)


@pytest.mark.parametrize(("options", "beams"), [((), 3), (("--beam", 1), 1)])
def test_compare_searches_every_side_alike(bundle: Bundle, tmp_path: Path, options: tuple[Any, ...], beams: int) -> None:
    path = settled(bundle, tmp_path / "beams", beam=3)
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{text}\tone two\n" for text in TEXTS))
    arguments = ("--data", data, "--precision", "fp32", "--batch", "1", "--out", tmp_path / "report", "--max-new-tokens", 4)
    result = invoke("compare", path, *arguments, *options, "-q")
    assert result.exit_code == 0, result.output
    method = json.loads((tmp_path / "report" / "report.json").read_text())["method"]
    assert method["beam"] == method["natural"]["beam"] == method["fixed"]["beam"] == beams


def test_a_side_draws_nothing_at_random(bundle: Bundle, tmp_path: Path) -> None:
    side = BundleSide(str(settled(bundle, tmp_path / "drawn", temperature=5.0)), "fp32", threads=1)
    side.load()
    plain = BundleSide(str(bundle.path), "fp32", threads=1)
    plain.load()
    assert side.generate(TEXTS) == plain.generate(TEXTS)
    drawn = side.model.generate(TEXTS)
    assert [one.tokens for one in drawn] != [one["tokens"] for one in plain.generate(TEXTS)]


def test_a_task_without_generation_takes_no_search_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedder.py").write_text(
        "import torch\nfrom onnxport.export import Encoder\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)\n"
        "    stack = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)\n"
        "    return Encoder(transformer=stack, embedding=torch.nn.Embedding(20, 16), pad_id=0, max_length=16)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert invoke("export", "embedder:build", "--out", "b", "--task", "embedding", "--precision", "fp32", "-q").exit_code == 0
    assert_refused(invoke("run", "b", "--beam", 2, "a"), 2, "--beam", "embedding")
