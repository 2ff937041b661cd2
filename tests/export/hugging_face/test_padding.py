"""What padding does to an answer: nothing where it is masked, and in RoBERTa's numbering of positions what the class does with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from onnxport.build.stages import build
from onnxport.export.resolve import resolve
from onnxport.quantize.fusion import fuse
from onnxport.runtime import load
from support import encoder_folders as folders
from support import hf_folders

ROWS = [[5, 9, 1, 7, 8, 20], [1, 1, 5, 9, 7, 8], [5, 1, 1, 9, 1, 7]]  # 1 is RoBERTa's padding


@pytest.mark.parametrize("family", ["roberta", "camembert", "xlm-roberta"])
def test_positions_are_counted_without_padding_wherever_it_stands(tmp_path: Path, family: str) -> None:
    model = folders.make(family, "single", max_position_embeddings=50)
    found = resolve(folders.write(tmp_path, model, family)).adapter.describe()
    given = {"input_ids": torch.tensor(ROWS), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    for mask in (given["attention_mask"], (given["input_ids"] != 1).long()):
        given["attention_mask"] = mask
        with torch.no_grad():
            wanted = model(**given).logits
            torch.testing.assert_close(found.build().graphs["encoder"].module(*given.values()), wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.answer(given)["logits"], wanted)


def test_a_bundle_of_roberta_counts_as_its_class_does(tmp_path: Path) -> None:
    model = folders.make("roberta", "single", max_position_embeddings=50)
    bundle = build(str(folders.write(tmp_path / "source", model, "roberta")), tmp_path / "bundle", precision=("fp32",))
    ids, mask = np.array(ROWS), np.ones((3, 6), np.int64)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    with load(bundle.path, threads=1) as ours, torch.no_grad():
        wanted = model(**{name: torch.tensor(array) for name, array in given.items()}).logits
        np.testing.assert_allclose(ours.run(given)["logits"], wanted.numpy(), atol=1e-4)


def test_the_sum_of_counted_positions_is_fused_as_is_expected(tmp_path: Path) -> None:
    from onnxport.export.stages import export

    made = export(str(folders.write(tmp_path, folders.make("roberta", max_position_embeddings=50), "roberta")))
    _, counts = fuse(made.graphs["encoder"], "encoder", "cuda")
    assert {rule: counts.get(rule, 0) for rule in made.expected["encoder"]} == made.expected["encoder"]


def test_outliers_in_scores_let_no_padding_in(tmp_path: Path) -> None:
    model = folders.make("bert", "single")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                parameter *= 100
    bundle = build(str(folders.write(tmp_path / "source", model, "bert")), tmp_path / "bundle", precision=("fp32",))
    given = folders.batch("bert", [9, 1, 4, 7, 2], 2)
    with load(bundle.path, threads=1) as ours, torch.no_grad():
        found = ours.run({name: tensor.numpy() for name, tensor in given.items()})["logits"]
        for i, length in enumerate([9, 1, 4, 7, 2]):
            alone = model(**{name: tensor[i : i + 1, :length] for name, tensor in given.items()}).logits[0]
            np.testing.assert_allclose(found[i], alone.numpy(), atol=1e-3)


def test_outliers_in_cross_attention_let_no_padding_in(tmp_path: Path) -> None:
    from transformers import MarianMTModel

    folder = hf_folders.marian(tmp_path / "marian", seed=2)
    model = MarianMTModel.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 100
    model.save_pretrained(folder)
    sources = [[5, 9, 12, 4, 2, 8, 3, 0], [7, 0], [30, 31, 8, 0]]
    with load(build(str(folder), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        together = ours.generate(sources, max_new_tokens=8, beam=1)
        for source, found in zip(sources, together, strict=True):
            (alone,) = ours.generate([source], max_new_tokens=8, beam=1)
            assert found.tokens == alone.tokens and found.score == pytest.approx(alone.score, abs=1e-3)
