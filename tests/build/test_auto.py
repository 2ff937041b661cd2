"""`--precision auto` as users meet it: a budget, data, a plan that is kept, an interrupted search that goes on, refusals."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxport.build.stages import build
from onnxport.cli import overview
from onnxport.quantize.auto import kernel_times, plan_quality
from onnxport.quantize.auto.journal import Journal
from onnxport.quantize.plan import scheme
from onnxport.runtime.bundle.reader import Bundle
from support import encoder_folders
from support.commands import assert_refused, invoke
from support.translation_folder import WORDS

TIMES = {"fp32": 4.0, "int8-rows": 2.0, "int8-blocks32": 1.5, "int4-blocks32-asym": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs of words."""
    words = [word for word in WORDS if not word.startswith("<")]
    lines = [" ".join(words[(7 * i + j * (i + 1)) % len(words)] for j in range(3 + i % 5)) for i in range(40)]
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text("".join(f"{line}\t{line[::-1]}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, float]]:
    """Sensitivities, once they were measured: they are the same in all searches here."""
    return {}


@pytest.fixture
def made(plain_bundle: Bundle, known: dict[str, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and beside it the sensitivities that earlier searches measured."""
    save, load = Journal.forget, Journal.__init__

    def keep(self: Journal) -> None:
        known.update(self._state["sensitivity"])
        save(self)

    def begin(self: Journal, folder: Path, key: str) -> None:
        load(self, folder, key)
        if known:
            self._state.setdefault("sensitivity", dict(known))

    monkeypatch.setattr(Journal, "forget", keep)
    monkeypatch.setattr(Journal, "__init__", begin)
    return Path(shutil.copytree(plain_bundle.path, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that do not hang on the machine: of a product by scheme, and of a variant by what its weights became."""

    def answer(bundle: Bundle, names: list[str], *_: object) -> dict[str, list[float]]:
        plans = {name: bundle.variants[name].plan.values() for name in names}
        return {name: [sum(TIMES.get(scheme.removesuffix("-hqq"), 4.0) for scheme in plan) / len(plan)] * 8 for name, plan in plans.items()}

    def product(shape: kernel_times.Shape, schemes: set[str], *_: object) -> dict[str, float]:
        return {scheme(name).kernel: TIMES[scheme(name).kernel] * shape.values / 1e6 for name in schemes}

    monkeypatch.setattr("onnxport.quantize.auto.search.MOST_PLANS", 8)
    monkeypatch.setattr(kernel_times, "measure", product)
    monkeypatch.setattr(plan_quality, "seconds", answer)


def quantize(bundle: Path, *more: object) -> object:
    return invoke("quantize", bundle, "--precision", "auto", "--threads", 1, *more)


def test_a_plan_within_the_budget_is_kept_and_makes_the_same_again(made: Path, data: Path) -> None:
    result = quantize(made, "--calibrate", data, "--budget", "relative_error<=0.02", "--json")
    assert result.exit_code == 0, result.output
    variant = json.loads(result.stdout)["variants"]["auto"]
    evidence = variant["evidence"]
    assert variant["parity"]["relative_error"] <= 0.02
    assert evidence["budget"]["expr"] == "relative_error<=0.02" and evidence["budget"]["met"]
    assert evidence["budget"]["value"] == pytest.approx(variant["parity"]["relative_error"], rel=1e-3)
    assert evidence["sensitivity"]["metric"] == "kl_divergence"
    modules = evidence["sensitivity"]["modules"]
    assert "transformer.decoder.layers.0.self_attn" in modules and "source_embedding.weight" in modules
    assert all(value >= 0 for values in modules.values() for value in values.values())
    assert all(isinstance(one["plan"], str) and one["seconds"] > 0 and "relative_error" in one["quality"] for one in evidence["search"])
    assert set(variant["plan"].values()) - {"fp32"}, "a plan of fp32 alone holds any budget"
    assert [one["name"] for one in evidence["layers"]]
    assert not made.with_name("tiny.search").exists()
    before = {file.name: file.read_bytes() for file in (made / "auto").iterdir()}
    again = quantize(made, "--plan", made / "auto" / "plan.json", "--calibrate", data, "--force")
    assert again.exit_code == 0, again.output
    assert before == {file.name: file.read_bytes() for file in (made / "auto").iterdir()}
    assert invoke("verify", made).exit_code == 0
    assert "auto" in invoke("inspect", made).stdout


def test_looser_budgets_give_faster_plans(made: Path, data: Path) -> None:
    taken = []
    for budget in (0.005, 0.02, 0.25):
        result = quantize(made, "--calibrate", data, "--budget", f"relative_error<={budget}", "--force", "--json")
        assert result.exit_code == 0, result.output
        timed = json.loads(result.stdout)["variants"]["auto"]["evidence"]["timed"]
        taken.append(min(timed.values()))
    assert taken[0] > taken[1] > taken[2]


def test_fp32_is_kept_and_named_where_nothing_is_faster(made: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIMES, "fp32", 0.5)
    result = quantize(made, "--calibrate", data)
    assert result.exit_code == 0, result.output
    assert set(Bundle.open(made).variants["auto"].plan.values()) == {"fp32"}
    assert "plain fp32 is the fastest" in result.stdout and "too noisy" not in result.stdout


def test_the_line_says_how_sure_the_speed_is(made: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ("--calibrate", data, "--budget", "relative_error<=0.25", "--force")
    result = quantize(made, *order)
    assert re.search(r"\d times as fast as fp32 \(\d\.\d\d to \d\.\d\d in 8 rounds in turn\), relative_error", result.stdout)
    answer = plan_quality.seconds

    def noisy(*arguments: object) -> dict[str, list[float]]:
        return {
            name: [one * (1 + i % 2 * (name != "fp32") * 4) for i, one in enumerate(taken)] for name, taken in answer(*arguments).items()
        }

    monkeypatch.setattr(plan_quality, "seconds", noisy)
    result = quantize(made, *order)
    assert result.exit_code == 0, result.output
    assert set(Bundle.open(made).variants["auto"].plan.values()) == {"fp32"}
    assert "too noisy to tell whether" in result.stdout


def test_an_interrupted_search_goes_on(made: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, asked = plan_quality.Quality.values, []

    def counted(self: plan_quality.Quality, bundle: Bundle, name: str, *more: object) -> object:
        asked.append(name)
        if name == "auto-trial" and asked.count(name) == 2:
            raise KeyboardInterrupt
        return values(self, bundle, name, *more)

    monkeypatch.setattr(plan_quality.Quality, "values", counted)
    order = ("--calibrate", data, "--budget", "relative_error<=0.02")
    assert quantize(made, *order).exit_code == 130
    assert "auto" not in Bundle.open(made).variants
    state = json.loads((made.with_name("tiny.search") / "measured.json").read_text())
    assert len(state["plans"]) == 1 and state["sensitivity"] and state["times"]
    monkeypatch.setattr("onnxport.quantize.auto.module_loss.DivergenceLoss.loss", lambda *_: pytest.fail("measured again"))
    result = quantize(made, *order)
    assert result.exit_code == 0, result.output
    assert "go on with the search" in result.stderr
    assert result.stderr.count("measured before") == 1 and "one by one" not in result.stderr
    assert not made.with_name("tiny.search").exists()


def test_a_budget_that_cannot_be_met_tells_the_best_found(made: Path, data: Path) -> None:
    result = quantize(made, "--calibrate", data, "--budget", "agreement>=1.5")
    assert_refused(result, 3, "agreement>=1.5", "no plan is within it", "the best of", "of fp32's predicted time", "loosen the budget")
    assert "auto" not in Bundle.open(made).variants


def test_an_encoder_that_gives_values_is_searched_on_its_golden_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table of two token types, which no scheme changes; no texts are answered by labels here, nor by anything that could agree."""
    monkeypatch.setitem(TIMES, "int8-static", 2.5)
    texts, made = tmp_path / "texts.txt", tmp_path / "made"
    texts.write_text("".join(f"{'abc'[i % 3]} word {i}\n" for i in range(20)))
    build(encoder_folders.write(tmp_path / "source", encoder_folders.make("bert", "regression"), "bert"), made, precision=("fp32",))
    assert_refused(quantize(made, "--calibrate", texts, "--data", texts), 2, "golden inputs", "leave --data out")
    result = quantize(made, "--calibrate", texts, "--json")
    assert result.exit_code == 0, result.output
    assert "golden inputs, not on texts.txt" in result.stderr and "chance decides" not in result.stderr
    auto = Bundle.open(made).variants["auto"]
    assert auto.evidence["budget"]["expr"] == "relative_error<=0.05"
    assert set(auto.plan.values()) > {"fp32"} and auto.plan["bert.embeddings.token_type_embeddings.weight"] == "fp32"


def test_one_weight_is_not_called_weights() -> None:
    plan = {"*": "fp32", "a": "int8-rows", "b": "int8-rows", "c": "fp32"}
    assert overview._plan("auto", SimpleNamespace(plan=plan, evidence={})) == "auto: 2 weights int8-rows, 1 weight fp32"


def test_refusals(made: Path, data: Path, tmp_path: Path) -> None:
    texts, few, empty, asked = (tmp_path / name for name in ("texts.txt", "few.tsv", "empty.tsv", "asked.jsonl"))
    texts.write_text("".join(f"{line.split(chr(9))[0]}\n" for line in data.read_text().splitlines()))
    few.write_text("a b\tc\n" * 9)
    empty.write_text("")
    asked.write_text('{"question": "a", "context": "b", "answers": ["c"]}\n' * 20)
    assert_refused(quantize(made, "--calibrate", texts, "--budget", "bleu_drop<=1"), 2, "bleu_drop is not measured", "agreement")
    assert_refused(quantize(made, "--calibrate", data, "--budget", "bleu_drop"), 2, "is not a gate")
    assert_refused(quantize(made, "--budget", "bleu_drop<=1"), 2, "--calibrate")
    assert_refused(quantize(made, "--calibrate", few), 4, "9 texts", "at least 16")
    assert_refused(quantize(made, "--calibrate", empty), 4, "no rows")
    assert_refused(quantize(made, "--calibrate", asked), 4, "questions")
    assert_refused(invoke("quantize", made, "--precision", "int8", "--data", data), 2, "--data")
    assert_refused(
        invoke("export", made, "--out", tmp_path / "x", "--precision", "auto", "--calibrate", data), 2, "add fp32 to --precision"
    )
