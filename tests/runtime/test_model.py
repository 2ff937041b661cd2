"""What an application can do wrong, and what it may do at the same time."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import Cancelled, DataError, DeviceError, GenerationTimeout, OnnxportError, TextError, UsageError
from onnxport.runtime import Model, load
from support import tiny_bundles as tiny


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 1.5}, "beam is 1.5"),
        ({"beam": True}, "beam is True"),
        ({"beam": 20}, "beam is 20"),
        ({"beam": 2, "temperature": 1.0}, "choose beams or sampling"),
        ({"n_best": 2}, "n_best is 2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9"),
        ({"min_new_tokens": tiny.POSITIONS + 1}, "min_new_tokens"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"temperature": 1e39}, "temperature is 1e+39"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"top_p": 1e-40}, "top_p is 1e-40"),
        ({"top_k": np.bool_(True)}, "top_k is"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40"),
        ({"repetition_penalty": 1e39}, "repetition_penalty is 1e+39"),
        ({"length_penalty": 11}, "length_penalty is 11"),
        ({"length_penalty": -1e300}, "length_penalty is -1e+300"),
        ({"timeout": 10**400}, "timeout is"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"cancel": True}, "cancel is bool"),
        ({"prefix": ["a", "b"]}, "prefix has 2"),
    ],
)
def test_bad_parameters_are_named(model: Model, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate(["w5"], **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        ([None], "NoneType"),
        ([3], "int, expected text"),
        ([b"w5"], "bytes"),
        ([5, 6, 2], "input 0: input is int"),
        (["w5", "a\ud800b"], "input 1: text holds a lone surrogate U+D800 at 1"),
        ([[5, True, 2]], "True is bool"),
        ([[5, 6.0]], "6.0 is float"),
        ([np.array([5.0])], "float"),
        ([np.array([True])], "bool"),
        ([["w5"]], "'w5' is str"),
        ([[5, tiny.VOCABULARY]], f"token id {tiny.VOCABULARY} is outside the vocabulary of {tiny.VOCABULARY}"),
        ([[5, -1]], "token id -1"),
        ([[5] * (tiny.POSITIONS + 1)], f"{tiny.POSITIONS + 1} tokens, the model takes at most {tiny.POSITIONS}"),
        (["w5 " * tiny.POSITIONS], f"{tiny.POSITIONS + 1} tokens"),
    ],
)
def test_bad_inputs_are_named(model: Model, inputs: list[Any], part: str) -> None:
    with pytest.raises(TextError) as caught:
        model.generate(inputs)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    plain = model.generate("w5 w6", temperature=4.0, top_k=5, top_p=0.5, seed=3, max_new_tokens=6, repetition_penalty=1.5)
    scalars = model.generate(
        "w5 w6", temperature=np.float32(4), top_k=np.int8(5), top_p=np.float16(0.5), seed=np.uint64(3), max_new_tokens=np.int32(6),
        repetition_penalty=np.float64(1.5),
    )  # fmt: skip
    assert scalars == plain
    with pytest.raises(UsageError, match="beam is 100"):
        model.generate("w5", beam=np.int8(100))  # type: ignore[arg-type]


def test_top_k_beyond_the_vocabulary_keeps_it_all(model: Model) -> None:
    assert model.generate("w5", top_k=10**30, seed=1) == model.generate("w5", top_k=tiny.VOCABULARY, seed=1)


def test_the_extremes_of_float32_draw(model: Model) -> None:
    greedy = model.generate("w5 w6", max_new_tokens=5)[0].tokens
    assert model.generate("w5 w6", temperature=1e-30, seed=1, max_new_tokens=5)[0].tokens == greedy
    assert model.generate("w5 w6", temperature=1e38, seed=1, max_new_tokens=5)[0].tokens


def test_empty_answers_are_not_shared(model: Model) -> None:
    one, two = model.generate(["", ""])
    assert one.text == two.text == ""
    assert one.finish_reason == "empty"
    one.tokens.append(5)
    assert two.tokens == model.generate([""])[0].tokens == []


def test_a_refused_text_is_told_by_its_place_in_the_list(model: Model) -> None:
    with pytest.raises(TextError, match="^input 2 has"):
        model.generate(["", "w5", "w5 " * tiny.POSITIONS, "w6"])
    with pytest.raises(TextError, match="^input 1: "):
        model.generate(["", [99]])


def test_an_id_only_the_target_has(seq2seq: tiny.TinyModel, tmp_path: Path) -> None:
    def size(path: Path, count: int | None) -> Model:
        manifest = json.loads((path / "bundle.json").read_text())
        manifest["generation"]["source_vocab_size"] = count
        manifest["files"]["fp32/encoder.onnx"]["bytes"] = (path / "fp32/encoder.onnx").stat().st_size
        (path / "bundle.json").write_text(json.dumps(manifest))
        return load(path, threads=1)

    smaller = tiny.TinyModel("seq2seq")
    smaller.w["source"] = smaller.w["source"][:20]
    path = tiny.write_bundle(tmp_path / "smaller", seq2seq)
    tiny.encoder(smaller, path / "fp32/encoder.onnx")
    for count in (20, None, tiny.VOCABULARY):  # told rightly, not told, told wrongly
        with size(path, count) as model, pytest.raises(TextError, match="vocabulary") as caught:
            model.generate([[5, 25, 2]])
        assert "\n" not in str(caught.value)


def test_what_onnx_runtime_says_is_an_error_of_ours(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["generation"]["max_length"] = 4 * tiny.POSITIONS
    (path / "bundle.json").write_text(json.dumps(manifest))
    with load(path, threads=1) as model, pytest.raises(OnnxportError, match="ONNX Runtime could not run the model") as caught:
        model.generate([[5, 2]], prefix=[[5] * (2 * tiny.POSITIONS)], max_new_tokens=2)
    assert "\n" not in str(caught.value)


def test_a_long_prompt_of_a_causal_model(causal_model: Model) -> None:
    assert len(causal_model.generate([[5] * tiny.POSITIONS], max_new_tokens=9)[0].tokens) <= 1
    with pytest.raises(TextError, match="at most"):
        causal_model.generate([[5] * (tiny.POSITIONS + 1)])


def test_inputs_that_are_no_list(model: Model) -> None:
    with pytest.raises(UsageError, match="inputs is int"):
        model.generate(3)  # type: ignore[arg-type]


def test_without_a_tokenizer_only_ids(seq2seq: tiny.TinyModel, tmp_path: Path) -> None:
    with load(tiny.write_bundle(tmp_path / "ids", seq2seq, with_tokenizer=False), threads=1) as model:
        result = model.generate([[5, 6, 2]], max_new_tokens=4)[0]
        assert result.text is None
        assert result.tokens
        assert model.generate([[]])[0].text is None
        for call in (lambda: model.generate("w5"), lambda: model.stream([5, 2]), lambda: model.tokenize("w5")):
            with pytest.raises(TextError, match="no tokenizer"):
                call()
        with pytest.raises(UsageError, match="stop needs text"):
            model.generate([[5, 2]], stop="x")


def test_a_stream_of_beams_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="beam is 2"):
        model.stream("w5", beam=2)


def test_a_stream_takes_the_options_of_generate(model: Model) -> None:
    shared = {"length_penalty": 2.0, "early_stopping": True, "repetition_penalty": 1.2, "min_new_tokens": 3, "max_new_tokens": 6}
    assert "".join(model.stream("w5 w6", **shared)) == model.generate("w5 w6", **shared)[0].text


def test_unknown_precision_lists_those_there_are(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="precision is 'int3', this bundle has fp32"):
        load(tiny_bundle, precision="int3")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 1025, 2**40])
def test_bad_threads(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads is"):
        load(tiny_bundle, threads=threads)


def test_unknown_device(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="device is 'tpu'"):
        load(tiny_bundle, device="tpu")


def test_a_device_that_is_absent(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="CUDAExecutionProvider") as caught:
        load(tiny_bundle, device="cuda")
    assert caught.value.exit_code == 5


def test_tasks_are_not_confused(model: Model) -> None:
    with pytest.raises(UsageError, match="use generate"):
        model.encode(["w5"])
    with pytest.raises(UsageError, match="use generate"):
        model.run({})


def test_a_closed_model(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as model:
        model.generate("w5", max_new_tokens=1)
    with pytest.raises(UsageError, match="closed"):
        model.generate("w5")


def test_after_a_fork_a_model_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="fork"):
        model.generate("w5")


def test_a_stream_and_a_tokenizer_of_a_closed_model(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as model:
        stream = model.stream("w5 w6", min_new_tokens=9, max_new_tokens=9)
        next(stream)
    for call in (lambda: next(stream), lambda: model.tokenize("w5")):
        with pytest.raises(UsageError, match="closed"):
            call()


class After:
    """A flag that is set after a number of looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("looks", [0, 1, 2, 5])
def test_cancelling_between_steps(model: Model, beam: int, looks: int) -> None:
    flag = After(looks)
    with pytest.raises(Cancelled):
        model.generate(["w5 w6 w7"], beam=beam, min_new_tokens=20, max_new_tokens=20, cancel=flag)
    assert flag.looks == -1  # it was looked at no more


def test_cancelling_a_stream(model: Model) -> None:
    flag, pieces = threading.Event(), []
    with pytest.raises(Cancelled):
        for piece in model.stream("w5 w6 w7", min_new_tokens=30, max_new_tokens=30, cancel=flag):
            pieces.append(piece)
            if len(pieces) == 3:
                flag.set()
    assert len(pieces) == 3


@pytest.mark.parametrize("beam", [1, 3])
def test_a_timeout(model: Model, beam: int) -> None:
    with pytest.raises(GenerationTimeout) as caught:
        model.generate(["w5 w6 w7"] * 8, beam=beam, min_new_tokens=40, max_new_tokens=40, timeout=1e-6)
    assert isinstance(caught.value, TimeoutError)
    assert model.generate(["w5"], timeout=60)


def calls(model: Model) -> list[Callable[[], Any]]:
    texts = [" ".join(f"w{5 + (7 * i + j) % 30}" for j in range(1 + 3 * i)) for i in range(8)]
    made: list[Callable[[], Any]] = []
    for i, text in enumerate(texts):
        made.append(lambda text=text, i=i: model.generate([text, texts[0]], min_new_tokens=i, max_new_tokens=5 + 4 * i, beam=1 + i % 3))
        made.append(lambda text=text, i=i: model.generate([text], temperature=3.0, seed=i, max_new_tokens=20, repetition_penalty=1.5))
        made.append(lambda text=text: "".join(model.stream(text, max_new_tokens=15)))
    return made


def told(result: Any) -> tuple[Any, list[float]]:
    """Texts and tokens of a call; its numbers apart."""
    if isinstance(result, str):
        return result, []
    return [(r.text, r.tokens, r.finish_reason) for r in result], [n for r in result for n in (r.score, *r.token_logprobs)]


@pytest.mark.parametrize("kind", ["tiny_bundle", "causal_bundle"])
def test_eight_threads_get_what_serial_calls_get(kind: str, request: pytest.FixtureRequest) -> None:
    with load(request.getfixturevalue(kind), threads=2) as model:
        made = calls(model)
        serial = [told(call()) for call in made]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                for found, expected in zip(pool.map(lambda call: told(call()), made), serial, strict=True):
                    assert found[0] == expected[0]
                    assert found[1] == pytest.approx(expected[1], abs=1e-4)  # float32 sums depend on the number of rows that share a batch


def test_scores_that_are_not_finite_are_an_error(seq2seq: tiny.TinyModel, tmp_path: Path) -> None:
    broken = tiny.TinyModel("seq2seq")
    broken.w["head"] = broken.w["head"] * np.float32(np.nan)
    with load(tiny.write_bundle(tmp_path / "nan", broken), threads=1) as model:
        for beam in (1, 2):
            with pytest.raises(Exception, match="not finite"):
                model.generate("w5", beam=beam)


def test_data_errors_are_refusals() -> None:
    assert DataError.exit_code == TextError.exit_code == 4


@pytest.mark.parametrize("name", ["n_best", "batch_size", "long", "beams"])
def test_a_stream_takes_options_of_a_search_only(tiny_bundle: Path, name: str) -> None:
    with load(tiny_bundle, threads=1) as model, pytest.raises(TypeError, match=rf"stream\(\) got an unexpected keyword argument '{name}'"):
        model.stream("w5", **{name: 1})  # type: ignore[arg-type]


def test_an_unknown_option_is_named(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as model, pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'beams'"):
        model.generate("w5", beams=2)  # type: ignore[call-arg]
