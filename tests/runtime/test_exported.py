"""A real torch.nn.Transformer, exported, fused and quantized, against PyTorch itself."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from onnxport.build.stages import build
from onnxport.export import Seq2Seq
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.verify import verify
from support.plain_numpy import beam_search

PAD, BOS, EOS, VOCABULARY, MAX = 0, 1, 2, 61, 40
SOURCES = [[5, 17, 2], [9, 8, 7, 33, 21, 40, 2], [60, 2], [12, 13, 14, 15, 2], [3, 4, 5, 6, 7, 8, 9, 10, 11, 2]]


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.Transformer(24, 2, 1, 2, 40, batch_first=True)  # head size 12: padded to 16 in the bundle
        self.source, self.target = nn.Embedding(VOCABULARY, 24), nn.Embedding(VOCABULARY, 24)
        self.positions, self.out = torch.randn(MAX, 24), nn.Linear(24, VOCABULARY)
        nn.init.normal_(self.out.weight, std=0.6)
        self.eval()

    @torch.no_grad()
    def logits(self, source: list[int], rows: list[list[int]]) -> torch.Tensor:
        x = self.source(torch.tensor([source] * len(rows))) * 24**0.5 + self.positions[: len(source)]
        y = self.target(torch.tensor(rows)) * 24**0.5 + self.positions[: len(rows[0])]
        causal = torch.triu(torch.ones(len(rows[0]), len(rows[0]), dtype=torch.bool), 1)
        return self.out(self.transformer(x, y, tgt_mask=causal))[:, -1]


@pytest.fixture(scope="module")
def torch_model() -> Iterator[Translator]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is so small that threads only get in each other's way
    yield Translator()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle(torch_model: Translator, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    adapter = Seq2Seq(
        transformer=torch_model.transformer, source_embedding=torch_model.source, target_embedding=torch_model.target,
        head=torch_model.out, positions=torch_model.positions, embedding_scale=24**0.5, pad_id=PAD, bos_id=BOS, eos_id=EOS, max_length=MAX,
    )  # fmt: skip
    return build(adapter, tmp_path_factory.mktemp("exported") / "b")


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Model:
    return load(bundle.path, "fp32", threads=2)


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"length_penalty": 0.5}])
@pytest.mark.parametrize("beam", [1, 4])
def test_answers_are_those_of_pytorch(model: Model, torch_model: Translator, beam: int, options: dict[str, float]) -> None:
    results = model.generate(SOURCES, beam=beam, max_new_tokens=14, **options)
    for source, result in zip(SOURCES, results, strict=True):
        logits = lambda rows, source=source: torch_model.logits(source, rows).numpy()  # noqa: E731
        score, tokens = beam_search(logits, [BOS], EOS, beam, 14, **options)[0]
        assert result.tokens == tokens
        assert result.score == pytest.approx(
            score * (1 if beam > 1 else (len(tokens) + (result.finish_reason == "eos")) ** options.get("length_penalty", 1.0)), abs=1e-3
        )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_answer_alone_as_in_a_batch(bundle: Bundle, precision: str) -> None:
    with load(bundle.path, precision, threads=2) as model:
        together = model.generate(SOURCES, max_new_tokens=12)
        assert [model.generate([s], max_new_tokens=12)[0].tokens for s in SOURCES] == [r.tokens for r in together]


def test_verify_passes(bundle: Bundle) -> None:
    assert set(verify(bundle.path)["variants"]) == {"fp32", "fp16", "int8"}


def test_the_bundle_has_only_listed_files(bundle: Bundle) -> None:
    assert bundle.unlisted() == []
    assert set(bundle.files) == {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()} - {"bundle.json"}
