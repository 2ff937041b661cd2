"""Four bit as users meet it: made from a bundle, calibrated or not, and made again from the plan that is kept beside the variant."""

import json
import shutil
from pathlib import Path

import pytest

from onnxport.runtime.bundle.reader import Bundle
from support.commands import invoke


def test_int4_gptq_by_a_mixed_plan_is_the_same_when_made_again(bundle: Bundle, tmp_path: Path) -> None:
    texts, plan = tmp_path / "texts.txt", tmp_path / "plan.json"
    texts.write_text("\n".join(" ".join("abcdefghijklmnop"[i : i + 3 + i % 4]) for i in range(12)))
    plan.write_text(json.dumps({"*": "int4-blocks-gptq", "transformer.encoder": "int8-blocks32-asym", "*.linear2": "fp32"}))
    made = []
    for name in ("one", "two"):
        added = shutil.copytree(bundle.path, tmp_path / name)
        result = invoke("quantize", added, "--precision", "int4-gptq", "--plan", plan, "--calibrate", texts, "-q")
        assert result.exit_code == 0, result.output
        made.append(Bundle.open(added, verify=True))
        plan = added / "int4-gptq" / "plan.json"
    one, two = (found.variants["int4-gptq"] for found in made)
    assert one.plan == two.plan and {"int4-blocks32-gptq", "int8-blocks32-asym", "fp32"} <= set(one.plan.values())
    for name in one.files:
        assert made[0].files[name] == made[1].files[name], name
    assert invoke("verify", made[1].path, "-q").exit_code == 0


def test_int4_needs_no_data_and_answers(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = shutil.copytree(bundle.path, tmp_path / "added")
    assert invoke("quantize", added, "--precision", "int4", "-q").exit_code == 0
    monkeypatch.chdir(added)  # which is another folder once it is replaced
    assert invoke("quantize", ".", "--precision", "int4-hqq", "-q").exit_code == 0
    monkeypatch.chdir(tmp_path)
    found = Bundle.open(added)
    assert found.files["int4/weights.bin"].bytes < 0.8 * found.files["int8/weights.bin"].bytes
    answers = json.loads(invoke("run", added, "--precision", "int4", "--json", "a b c").stdout)["results"]
    assert set(answers[0]) == {"text", "tokens", "score", "finish_reason"}
