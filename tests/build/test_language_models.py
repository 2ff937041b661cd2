"""Bundles of language models that know the kit's texts: made without float32 beside them, and made again."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxport.build.estimate import estimate
from onnxport.build.stages import add_variant, build
from onnxport.export import golden
from onnxport.quantize.auto import kernel_times, plan_quality
from onnxport.quantize.calibration_inputs import feeds, judged_texts
from onnxport.quantize.plan import scheme
from onnxport.quantize.safeguards import sensitive_weights
from onnxport.runtime.bundle import golden as goldens
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.tokenizer import TextTokenizer
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

    def time(one: str) -> float:
        return 1.0 if one == "fp32" else 0.5 + ("rows-rotated" not in one) / 4

    def seconds(bundle: Bundle, names: list[str], *_: object) -> dict[str, list[float]]:
        return {name: [sum(map(time, bundle.variants[name].plan.values())) / len(bundle.variants[name].plan)] * 8 for name in names}

    monkeypatch.setattr(kernel_times, "measure", lambda shape, schemes, *_: {scheme(one).kernel: time(one) for one in schemes})
    monkeypatch.setattr(plan_quality, "seconds", seconds)
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
    other = add_variant(tmp_path / "out", "auto", calibrate=data, budget="perplexity_drop<=5", kv="int8", force=True).variants["auto"]
    assert other.evidence["budget"]["expr"] == "perplexity_drop<=5" and other.evidence["budget"]["value"] <= 5
    assert other.plan["kv"] == "int8" and "agreement" not in other.evidence["search"][0]["quality"]


def test_some_texts_of_the_calibration_data_are_judged_on_and_not_calibrated_on(folder: Path, tmp_path: Path) -> None:
    lines = [f"note {i} that is written {'twice ' * (1 + i % 3)}" for i in range(20)]
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(lines))
    kit = build(str(folder), tmp_path / "kit", precision=("fp32", "int8"))
    own = build(str(folder), tmp_path / "own", precision=("fp32", "int8"), calibrate=data)

    def texts(bundle: Bundle) -> set[tuple[int, ...]]:
        case = goldens.read(bundle.file(bundle.golden or ""))[goldens.TEXT]
        return {tuple(row[:length]) for row, length in zip(*goldens.targets(case), strict=True)}

    tokenizer = TextTokenizer(own.file(own.tokenizers["source"]))
    judged = texts(own) - texts(kit)
    assert texts(kit) < texts(own) and judged == {tuple(row) for row in tokenizer.encode(list(judged_texts(data)))}
    read = {tuple(map(int, feed["input_ids"][0])) for feed in feeds(own, data)["decoder"]}
    assert read == {tuple(row) for row in tokenizer.encode(lines)} - judged and len(judged) == 8
    assert add_variant(tmp_path / "own", "int8", calibrate=data, force=True).variants["int8"].bytes == own.variants["int8"].bytes


def test_few_rows_are_all_calibrated_on(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a line\n" * 15)
    assert judged_texts(tmp_path / "texts.txt") == ()


def test_a_variant_for_another_target_takes_the_plan_of_the_same_recipe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, asked = sensitive_weights.of_a_decoder, []

    def counted(*given: Any) -> dict[str, str]:
        asked.append(given)
        return searched(*given)

    monkeypatch.setattr(sensitive_weights, "of_a_decoder", counted)
    made = build(str(folder), tmp_path / "out", precision=("fp32", "int8-weight", "int8@web"))
    assert made.variants["int8@web"].plan == made.variants["int8-weight"].plan and len(asked) == 1
