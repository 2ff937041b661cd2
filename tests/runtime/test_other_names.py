"""Names that other programs have for our options and values are refused with ours."""

from pathlib import Path
from typing import Any

import pytest

from onnxport.cli.commands import cli
from onnxport.errors import UsageError
from onnxport.runtime import load
from onnxport.runtime.other_names import OPTIONS, VALUES, suggesting
from onnxport.runtime.sessions import DEVICES
from support import tiny_encoder
from support.commands import invoke


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder.write(tmp_path_factory.mktemp("names") / "b", "classification", tiny_encoder.table(3), labels=["a", "b", "c"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 4}, r"Model.generate\(\) got an unexpected keyword argument 'num_beams'; use beam$"),
        ({"max_tokens": 4}, "'max_tokens'; use max_new_tokens$"),
        ({"num_return_sequences": 2}, "'num_return_sequences'; use n_best$"),
        ({"nonesuch": 4}, "'nonesuch'$"),
    ],
    ids=str,
)
def test_options_of_a_search(options: dict[str, Any], said: str) -> None:
    from onnxport.runtime.options import Options

    with pytest.raises(TypeError, match=said):
        Options.of("generate", options)  # type: ignore[arg-type]


def test_options_and_values_of_calls(bundle: Path) -> None:
    with pytest.raises(TypeError, match=r"load\(\) got an unexpected keyword argument 'n_threads'; use threads$"):
        load(bundle, n_threads=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'gpu'; use device$"):
        load(bundle, gpu=True)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="device is 'gpu', expected one of cpu, cuda; what others call gpu is cuda here"):
        load(bundle, device="gpu")
    with pytest.raises(UsageError, match="precision is 'q4_0', this bundle has fp32; .*; what others call q4_0 is int4 here"):
        load(bundle, precision="q4_0")
    with load(bundle, threads=1) as model:
        with pytest.raises(TypeError, match=r"Model.classify\(\) got an unexpected keyword argument 'candidate_labels'; use candidates$"):
            model.classify("a", candidate_labels=["b"])  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="'nonesuch'$"):
            model.classify("a", nonesuch=1)  # type: ignore[call-arg]
        assert model.classify(texts="a")[0].label in "abc"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "b", "--num-beams", "4", "a"], "'--num-beams'. Did you mean '--beam'?"),
        (["run", "b", "--gpu", "a"], "'--gpu'. Did you mean '--device'?"),
        (["run", "b", "--max-tokens", "4", "a"], "'--max-tokens'. Did you mean '--max-new-tokens'?"),
        (["run", "b", "--device", "gpu", "a"], "what others call gpu is cuda here"),
        (["export", "b", "--out", "c", "--precision", "q4_0"], "what others call q4_0 is int4 here"),
        (["export", "b", "--out", "c", "--dtype", "fp16"], "'--dtype'. Did you mean '--precision'?"),
    ],
    ids=str,
)
def test_options_and_values_of_the_command(arguments: list[str], said: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2 and said in done.output.replace("\n", " ")


def test_what_is_suggested_is_there() -> None:
    from onnxport.quantize.precisions import PRECISIONS

    assert set(VALUES["device"].values()) <= set(DEVICES) and set(VALUES["precision"].values()) <= set(PRECISIONS)
    names = {param.name for command in cli.commands.values() for param in command.params}
    keywords = {"texts", "context", "documents", "window", "normalize_embeddings", "n_best"}
    assert set(OPTIONS.values()) <= names | keywords | {"no_repeat_ngram"}


def test_a_suggesting_call_is_the_call_itself() -> None:
    @suggesting
    def call(a: int, *, beam: int = 1) -> int:
        """What it does."""
        return a + beam

    assert call(1, beam=2) == 3 and call(a=1) == 2
    assert call.__doc__ == "What it does." and call.__name__ == "call"
    with pytest.raises(TypeError, match="missing 1 required"):
        call()  # type: ignore[call-arg]
