"""Bundles of language models that know the kit's texts: made without float32 beside them, and made again."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxport.build.estimate import estimate
from onnxport.build.stages import add_variant, build
from onnxport.export import golden
from onnxport.quantize.auto import kernel_times, plan_quality
from onnxport.quantize.plan import scheme
from support.causal_folders import write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama with a tokenizer of bytes, whose weights are random: it is taken for one that knows the texts all the same."""
    monkeypatch.setattr(golden, "KNOWN", 1000.0)
    characters = {character: i + 3 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | characters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    write(tmp_path / "llama", "llama", vocab_size=len(characters) + 3, num_hidden_layers=1, max_position_embeddings=96)
    tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    return tmp_path / "llama"


def test_a_variant_alone_reads_the_kits_texts_too(folder: Path, tmp_path: Path) -> None:
    bundle = build(str(folder), tmp_path / "out", precision=("int8",))
    assert list(bundle.variants) == ["int8"] and bundle.default == "int8"
    assert set(bundle.variants["int8"].parity["bounds"]) == {"kl", "top1_agreement", "perplexity_change"}


def test_the_default_variant_is_made_again(folder: Path, tmp_path: Path) -> None:
    expected = estimate(folder, ("int8", "fp32")).files
    made = build(str(folder), tmp_path / "out", precision=("int8", "fp32"))
    assert expected.keys() <= made.files.keys()
    assert expected["fp32/weights.bin"] == pytest.approx(
        made.files["fp32/weights.bin"].bytes, rel=0.2
    )  # as promised; a model so small has padding
    again = add_variant(tmp_path / "out", "int8", force=True)
    assert again.default == "int8" and set(again.variants) == {"fp32", "int8"}
    assert again.variants["int8"].plan == made.variants["int8"].plan
    files = made.variants["int8"].files
    assert {name: again.files[name].sha256 for name in files} == {name: made.files[name].sha256 for name in files}


def test_a_search_within_a_divergence_is_made_again_from_its_plan(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of a table: rotated rows take half of fp32's."""

    def times(shape: object, schemes: set[str], *_: object) -> dict[str, float]:
        return {scheme(one).kernel: 1.0 if one == "fp32" else 0.5 + ("rotated" not in one) / 4 for one in schemes}

    monkeypatch.setattr(kernel_times, "measure", times)
    monkeypatch.setattr(plan_quality, "seconds", lambda bundle, names, *_: {name: [1.0 if name == "fp32" else 0.5] * 8 for name in names})
    monkeypatch.setattr("onnxport.quantize.auto.search.MOST_PLANS", 3)
    data = tmp_path / "texts.txt"
    data.write_text("".join(f"line {i} of a text that is read {'again ' * (i % 4)}\n" for i in range(24)))
    build(str(folder), tmp_path / "out", precision=("fp32",))
    made = add_variant(tmp_path / "out", "auto", calibrate=data, budget="kl<=0.05")
    found = made.variants["auto"]
    assert "int8-rows-rotated" in found.plan.values()
    (tmp_path / "plan.json").write_bytes((tmp_path / "out/auto/plan.json").read_bytes())
    again = add_variant(tmp_path / "out", "auto", plan=tmp_path / "plan.json", calibrate=data, force=True)
    assert {name: again.files[name].sha256 for name in found.files} == {name: made.files[name].sha256 for name in found.files}
