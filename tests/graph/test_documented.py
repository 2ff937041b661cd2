"""docs/graphs.md: it has every input and output of the graphs of bundles, with its dtype, and its example decodes as the runtime does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from onnxport.build.stages import build
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from support import causal_folders, encoder_folders
from support.once import made_once

PAGE = (Path(__file__).parents[2] / "docs" / "graphs.md").read_text(encoding="utf-8")
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (
        made_once(
            tmp_path_factory,
            "documented-causal",
            lambda made: build(
                str(causal_folders.write(made / "source", "llama")), made / "tiny", precision=("fp32",), target=("cpu", "web")
            ),
        )
        / "tiny"
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(made: Path) -> None:
        source = encoder_folders.write(made / "source", encoder_folders.make("bert", "single"), "bert")
        build(str(source), made / "tiny", precision=("fp32",))

    return made_once(tmp_path_factory, "documented-encoder", make) / "tiny"


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _values(file: Path) -> Iterator[tuple[str, str]]:
    """Names of inputs and outputs as the page writes them, and their dtypes."""
    session = onnxruntime.InferenceSession(file)
    for value in [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]:
        yield re.sub(r"_\d+$", "_i", value.name), DTYPES[value.type]


def _rows(section: str) -> dict[str, str]:
    """Name → what the page's tables say of its dtype."""
    cells = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ") and "`" in line]
    return {name: dtype for names, dtype in cells for name in re.findall(r"`(\w+)`", names)}


def _check(file: Path, title: str) -> None:
    rows = _rows(_section(title))
    for name, dtype in _values(file):
        assert name in rows and (dtype in rows[name] or rows[name].strip().startswith("as ")), (title, name, dtype)


def test_graphs_of_an_encoder_decoder(bundle: Bundle) -> None:
    for variant in bundle.variants.values():
        _check(bundle.file(variant.graphs["encoder"]), "Encoder of an encoder-decoder")
        _check(bundle.file(variant.graphs["decoder"]), "Decoder")


@pytest.mark.parametrize("variant", ["fp32", "fp32@web"])
def test_graphs_of_a_language_model(causal: Path, variant: str) -> None:
    found = Bundle.open(causal)
    _check(found.file(found.variants[variant].graphs["decoder"]), "Decoder")


def test_graphs_that_answer_in_one_pass(classifier: Path) -> None:
    found = Bundle.open(classifier)
    _check(found.file(found.variants["fp32"].graphs["encoder"]), "Models that answer in one pass")


def test_search_graphs(bundle: Bundle) -> None:
    lines = [line for line in _section("Search graphs").splitlines() if line.startswith("| `")]
    told = {name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told.keys() == bundle.search.keys()
    for name, file in bundle.search.items():
        for value, _ in _values(bundle.file(file)):
            first = re.sub("^(in|out)_i$", r"\1_0", value)
            assert f"`{first}`" in told[name], (name, value)


def test_the_example_decodes_as_the_runtime(bundle: Bundle, causal: Path) -> None:
    names: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], names)
    for folder, ids in ((bundle.path, [5, 6, 7, 2]), (causal, [5, 6, 7, 8, 9])):
        with load(folder, precision="fp32") as model:
            assert names["greedy"](folder, "fp32", ids, 12) == model.generate([ids], beam=1, max_new_tokens=12)[0].tokens
