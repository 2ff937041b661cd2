"""Models and results in a console and in a notebook."""

from pathlib import Path

import numpy as np

import onnxport
from onnxport.runtime.decode.generator import Generation
from onnxport.runtime.tasks.classification import Classification
from onnxport.runtime.tasks.reranking import Ranked
from onnxport.runtime.tasks.scoring import Scored


def test_a_model_tells_what_it_is(tiny_bundle: Path) -> None:
    with onnxport.load(tiny_bundle, precision="fp32", threads=1) as model:
        assert repr(model) == f"Model({model.bundle.name!r}, task='translation', precision='fp32', device='cpu', threads=1)"
        for part in ("<th>task</th><td>translation</td>", "<td>fp32, of ", " MB</td>", str(tiny_bundle)):
            assert part in model._repr_html_()


def test_results_leave_out_what_is_as_usual() -> None:
    short = Generation("Hallo.", [7356, 14], -1.4699196, [-0.58, -0.9], "eos")
    assert repr(short) == "Generation(text='Hallo.', tokens=[7356, 14], score=-1.47, token_logprobs=[-0.58, -0.9], finish_reason='eos')"
    assert "alternatives=(Generation(text=None" in repr(
        Generation(None, [], 0.0, [], "eos", alternatives=(Generation(None, [], 0.0, [], "eos"),))
    )
    assert repr(Ranked(0, 0.123456)) == "Ranked(index=0, score=0.1235)"


def test_long_values_are_cut() -> None:
    text = repr(Generation("a" * 500, list(range(100)), 0.0, [], "length"))
    assert "a…'" in text and "5, 6, 7, … 100 in all]" in text and len(text) < 350
    scores = {f"label {i}": 1 / (i + 3) for i in range(50)}
    text = repr(Classification("label 0", scores, ("label 0",)))
    assert "'label 0': 0.3333" in text and "… 50 in all}" in text
    assert "top_ids=array of 2×3 int64" in repr(
        Scored([1, 2], np.zeros(2, np.float32), np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32))
    )


def test_a_notebook_gets_a_table_without_markup_of_strangers() -> None:
    shown = Classification("<b>", {"<b>": 1.0}, ("<b>",))._repr_html_()
    assert shown.startswith("<table>") and "<b>" not in shown and "&lt;b&gt;" in shown
    assert "<td>a<br>b</td>" in Generation("a\nb", [1], 0.0, [0.0], "eos")._repr_html_()
