"""Heads of masked language models over the table of tokens."""

from pathlib import Path

import pytest

from onnxport.export import stages
from support import encoder_folders


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_tied_table_is_in_the_graph_once(family: str, tmp_path: Path) -> None:
    model = encoder_folders.make(family, "masked")
    graph = stages.export(encoder_folders.write(tmp_path / family, model, family)).graphs["encoder"].graph
    vocabulary, hidden = model.get_input_embeddings().weight.shape
    assert sum(set(value.shape) == {vocabulary, hidden} for value in graph.initializers.values()) == 1
