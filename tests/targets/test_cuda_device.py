"""onnxruntime-gpu's own CUDA provider over a device that is none (support.fake_cuda): where nodes run, copies, bindings and caches.

Kernels do nothing there, so no answer means anything but its form. ONNXPORT_BUNDLES is a folder of bundles of support.target_bundles.
"""

import os
from pathlib import Path

os.environ["ORT_ENABLE_XQA"] = "0"  # one of GroupQueryAttention's ways, which asks for more of the device's properties than it has

import numpy as np
import onnxruntime
import pytest

from onnxport.errors import BundleError, DeviceError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import split
from onnxport.runtime.sessions import Sessions

FOLDER = Path(os.environ["ONNXPORT_BUNDLES"])
CASES = [
    (path.parent.name, name)
    for path in sorted(FOLDER.glob("*/bundle.json"))
    for name in Bundle.open(path.parent).variants
    if name.endswith("@cuda")
]
GENERATING = [(kind, name) for kind, name in CASES if kind != "encoder"]
SEARCHES = [
    {"beam": 1},
    {"beam": 3},
    {"beam": 1, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 1},
    {"temperature": 1.0, "seed": 1},
]


def test_this_is_the_version_that_is_meant():
    assert onnxruntime.__version__ == "1.31.1"
    assert len(CASES) > 20


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_all_nodes_run_on_cuda_and_nothing_is_copied_between(kind, name, tmp_path):
    bundle = Bundle.open(FOLDER / kind)
    for role, graph in bundle.variants[name].graphs.items():
        optimized = tmp_path / f"{role}.onnx"

        def keep(options, optimized=optimized):
            options.optimized_model_filepath = str(optimized)

        Sessions.on("cuda").open(bundle.file(graph), adjust=keep)  # refuses what would run on the CPU
        assert b"Memcpy" not in optimized.read_bytes()


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize(("kind", "name"), GENERATING)
def test_every_search_runs_to_its_end(kind, name, options):
    with load(FOLDER / kind, precision=split(name)[0], device="cuda") as model:
        assert model.precision == name
        inputs = ["a b c", "a"] if kind == "seq2seq" else [[5, 17, 2], [4]]
        count = 12 if kind == "seq2seq" else 70  # caches begin with 64 positions
        answers = model.generate(inputs, min_new_tokens=count, max_new_tokens=count, **options)
    assert [len(answer.tokens) for answer in answers] == [count, count]


def test_many_rows_share_a_batch():
    with load(FOLDER / "causal", precision="int8", device="cuda") as model:
        ids = [[token] for token in range(3, 11)]
        assert len(model.generate(ids, beam=1, max_new_tokens=20)) == len(ids)


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind == "encoder"])
def test_encoders_answer_batches(name):
    with load(FOLDER / "encoder", precision=split(name)[0], device="cuda") as model:
        assert len(model.classify(["a b c", "d"])) == 2


def test_what_cuda_has_no_kernel_for_is_refused():
    bundle = Bundle.open(FOLDER / "causal")
    with pytest.raises(DeviceError, match="cuda has no kernel for GroupQueryAttention here"):
        Sessions.on("cuda").open(bundle.file(bundle.variants["fp32@web"].graphs["decoder"]))
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        Sessions.on("cuda").open(bundle.file(bundle.variants["fp32"].graphs["decoder"]))


def test_plain_arrays_come_back_as_they_were_asked_for():
    with load(FOLDER / "encoder", precision="fp16", device="cuda") as model:
        found = model.run({"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)})
    assert found["logits"].shape == (1, 3) and found["logits"].dtype == np.float32
