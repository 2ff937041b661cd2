"""The shipped English-to-German model, from its folder to answers, against its own PyTorch class."""

import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from onnxport.runtime import Model, load
from support.paths import EXAMPLE
from support.plain_beam import beam_search

PAIRS = [line.split("\t") for line in (EXAMPLE / "test-200.tsv").read_text(encoding="utf-8").splitlines()]
SOURCES, REFERENCES = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]


@pytest.fixture(scope="module")
def bundle(example: Path) -> Path:
    return example / "en-de"


@pytest.fixture(scope="module")
def fp32(bundle: Path) -> Any:
    with load(bundle, precision="fp32") as model:
        yield model


@pytest.fixture(scope="module")
def original() -> Any:
    """The example's own module and its greedy decoding."""
    sys.path.insert(0, str(EXAMPLE))
    import model

    try:
        yield model, model.load(EXAMPLE)
    finally:
        sys.path.remove(str(EXAMPLE))


def translations(model: Model) -> list[str]:
    return [result.text for result in model.generate(SOURCES, max_new_tokens=64)]


def test_greedy_answers_are_those_of_the_module(fp32: Model, original: Any) -> None:
    module, net = original
    for text, result in zip(SOURCES[:60], fp32.generate(SOURCES[:60], max_new_tokens=64), strict=True):
        ids = torch.tensor([fp32.tokenize(text)])
        assert result.tokens == module.greedy(net, ids, 64)[0], text


def test_beam_answers_are_those_of_a_plain_beam_search(fp32: Model, original: Any) -> None:
    _, net = original
    chosen = SOURCES[::10]
    for text, result in zip(chosen, fp32.generate(chosen, beam=4, max_new_tokens=40), strict=True):
        source = torch.tensor([fp32.tokenize(text)])
        with torch.no_grad():
            memory = net.encode(source)

        def next_logits(rows: torch.Tensor, source: torch.Tensor = source, memory: torch.Tensor = memory) -> torch.Tensor:
            return net.decode(rows, memory.expand(len(rows), -1, -1), source.expand(len(rows), -1))[:, -1]

        tokens, score = beam_search(next_logits, net.config["bos_id"], net.config["eos_id"], 4, 40)
        assert result.tokens == tokens, text
        assert result.score == pytest.approx(score, abs=1e-4)


def test_quality_is_that_of_the_model_card(fp32: Model) -> None:
    assert sacrebleu.corpus_bleu(translations(fp32), [REFERENCES]).score > 35


@pytest.mark.parametrize(("precision", "loss"), [("fp16", 0.3), ("int8", 1.5)])
def test_variants_keep_the_quality(bundle: Path, fp32: Model, precision: str, loss: float) -> None:
    # 200 sentences are a small sample: the whole test set's losses, far smaller, are in docs/experiments.md
    with load(bundle, precision=precision) as model:
        score = sacrebleu.corpus_bleu(translations(model), [REFERENCES]).score
    assert score > sacrebleu.corpus_bleu(translations(fp32), [REFERENCES]).score - loss


def test_int8_takes_less_than_three_tenths_of_fp32(fp32: Model) -> None:
    variants = fp32.bundle.variants
    assert variants["int8"].bytes <= 0.30 * variants["fp32"].bytes


def test_variants_are_judged_on_text(fp32: Model) -> None:
    for name, variant in fp32.bundle.variants.items():
        parity = variant.parity
        assert set(parity["bounds"]) == {"kl", "top1_agreement", "perplexity_change"} | ({"relative_error"} if name == "fp32" else set())
        assert 0 <= parity["kl"] < {"fp32": 1e-8, "fp16": 1e-5, "int8": 2e-3}[name]
        assert 1 < parity["perplexity"] < 20
