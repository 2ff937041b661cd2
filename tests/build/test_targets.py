"""Variants for other targets: their names, the files that they share, and what happens to these when a variant is made anew."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from onnxport.build import stages
from onnxport.graph import store
from onnxport.runtime import load
from onnxport.runtime.bundle.interface import QUERY_LENGTHS
from onnxport.runtime.bundle.manifest import Variant
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.verify import verify
from support import causal_folders
from support.commands import assert_refused, invoke
from support.product_file import write_product

TARGETS = ("cpu", "cuda", "web")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A language model whose layers have a window, for every target."""
    folder = tmp_path_factory.mktemp("targets")
    causal_folders.write(folder / "source", "mistral", sliding_window=8)
    result = invoke("export", folder / "source", "--out", folder / "out", "--precision", "fp32,int8", "--target", ",".join(TARGETS), "-q")
    assert result.exit_code == 0, result.output
    return Bundle.open(folder / "out", verify=True)


def copy_of(bundle: Bundle, place: Path) -> Path:
    return Path(shutil.copytree(bundle.path, place / "copy"))


def shared(variants: Mapping[str, Variant]) -> set[str]:
    """Files that are in several variants."""
    every = [file for variant in variants.values() for file in variant.files]
    return {file for file in every if every.count(file) > 1}


def test_variants_have_the_names_and_targets_that_were_asked_for(window: Bundle) -> None:
    assert {name: variant.target for name, variant in window.variants.items()} == {
        "fp32": "any", "int8": "cpu", "fp32@cuda": "cuda", "int8@cuda": "cuda", "fp32@web": "web", "int8@web": "web",
    }  # fmt: skip
    assert window.default == "fp32"
    assert not window.unlisted()


def test_the_same_weights_are_there_once(window: Bundle) -> None:
    assert "fp32/weights.bin" in shared(window.variants)
    assert window.variants["fp32@web"].graphs == {"decoder": "fp32/decoder@web.onnx"}
    assert not (window.path / "fp32@web").exists()
    assert window.variants["int8"].files == ("int8/decoder.onnx", "int8/plan.json", "int8/weights.bin")


def test_weights_for_browsers_are_in_files_that_these_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal_folders.write(tmp_path / "source", "llama", num_hidden_layers=1)
    monkeypatch.setattr(store, "PART", 2**14)
    options = ("--precision", "fp32,int8-weight", "--target", "cpu,web", "-q")
    result = invoke("export", tmp_path / "source", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    made = Bundle.open(tmp_path / "out", verify=True)
    files = [file for file in made.variants["fp32@web"].files if file.endswith(".bin")]
    assert len(files) > 2 and max(made.files[file].bytes for file in files) <= 2**14
    assert not shared({name: made.variants[name] for name in ("fp32", "fp32@web")})
    assert invoke("verify", tmp_path / "out").exit_code == 0


def test_other_targets_read_nothing_that_their_onnx_runtime_lacks(window: Bundle) -> None:
    for name, variant in window.variants.items():
        graph = onnx.load(window.file(variant.graphs["decoder"]), load_external_data=False).graph
        inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        attributes = {attribute.name for node in graph.node if node.op_type == "GroupQueryAttention" for attribute in node.attribute}
        newer = "@" not in name
        assert (QUERY_LENGTHS in inputs) == newer and ("sliding_window_cache" in attributes) == newer
        assert variant.min_onnxruntime == ("1.32" if newer else "1.31" if name.endswith("@cuda") else "1.30")
        assert variant.whole_caches is not newer
        if name.startswith("int8@"):
            assert {"MatMulNBits", "GatherBlockQuantized"} <= {node.op_type for node in graph.node}
        half = name == "int8@cuda"
        assert inputs["past_key_0"] == (TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    assert window.manifest.value["requires"] == ["variants.whole_caches"]


def test_a_window_that_is_full_gives_the_same_answers_for_every_target(window: Bundle) -> None:
    prompt = list(range(3, 30))
    answers = []
    for name in ("fp32", "fp32@web"):
        with load(window.path, precision=name, threads=1) as model:
            answers.append(model.generate([prompt, prompt[:5]], beam=1, max_new_tokens=16))
    assert [answer.tokens for answer in answers[0]] == [answer.tokens for answer in answers[1]]


def test_verify_replays_them_where_they_were_checked(window: Bundle) -> None:
    found = verify(window.path, threads=1)
    assert list(found["variants"]) == list(window.variants)
    assert window.variants["int8@cuda"].parity["device"] == "cpu" and "device" not in window.variants["int8"].parity
    assert list(verify(window.path, threads=1, device="cpu")["variants"]) == ["fp32", "int8"]


def test_a_variant_that_others_share_files_with_is_made_anew(window: Bundle, tmp_path: Path) -> None:
    path = copy_of(window, tmp_path)
    assert invoke("quantize", path, "--precision", "fp32", "--force", "-q").exit_code == 0
    made = Bundle.open(path, verify=True)
    assert made.variants["fp32@web"].graphs == {"decoder": "fp32@web/decoder.onnx"}
    assert not made.unlisted() and {"fp32/weights.bin"}.isdisjoint(shared(made.variants))
    verify(path, threads=1)


def test_one_is_added_by_either_way_of_naming_it(window: Bundle, tmp_path: Path) -> None:
    path = copy_of(window, tmp_path)
    assert_refused(invoke("quantize", path, "--precision", "fp32", "--target", "web", "-q"), 6, "has a variant fp32@web already")
    assert invoke("quantize", path, "--precision", "fp16", "--target", "web", "-q").exit_code == 0
    assert invoke("quantize", path, "--precision", "int8@web", "--force", "-q").exit_code == 0
    made = Bundle.open(path, verify=True)
    assert {"fp16@web", "int8@web"} <= set(made.variants) and not made.unlisted()
    verify(path, threads=1)


def test_what_no_target_takes_is_refused_and_what_some_do_not_is_noted(tmp_path: Path) -> None:
    source = write_product(tmp_path / "product.onnx")
    assert_refused(
        invoke("export", source, "--out", tmp_path / "out", "--precision", "fp32,auto@web", "-q"), 2, "web has no kernels for auto"
    )
    made = stages.build(source, tmp_path / "out", precision=("fp32", "int8", "int8-reduced"), target=("cpu", "web"))
    assert list(made.variants) == ["fp32", "int8", "int8-reduced", "fp32@web", "int8@web"]
    assert made.manifest.value["provenance"]["notes"] == ["int8-reduced@web is left out: web has no kernels for it"]
    assert made.variants["fp32@web"].files == made.variants["fp32"].files  # graph, plan and weights are the same bytes
