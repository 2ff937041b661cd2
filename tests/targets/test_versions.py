"""Variants for CUDA and the web answer rightly in the very versions of ONNX Runtime that these have; `make test-targets` runs this.

No torch and no onnx is here: ONNXPORT_BUNDLES is a folder of bundles that support.target_bundles made, ONNXPORT_TARGET one of the targets,
whose newest ONNX Runtime is here: its build for the CPU runs the graphs.
"""

import os
from pathlib import Path

import onnxruntime
import pytest

from onnxport.errors import BundleError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import split
from onnxport.runtime.verify import check_bounds, replay

FOLDER, TARGET = Path(os.environ["ONNXPORT_BUNDLES"]), os.environ["ONNXPORT_TARGET"]
VERSION = {"cuda": "1.31.1", "web": "1.30.0"}[TARGET]  # as in quantize/fusion/targets.py
BUNDLES = sorted(path.parent.name for path in FOLDER.glob("*/bundle.json"))
CASES = [(kind, name) for kind in BUNDLES for name in Bundle.open(FOLDER / kind).variants if split(name)[1] == TARGET]


def test_this_is_the_version_that_is_meant():
    assert onnxruntime.__version__ == VERSION
    assert len(BUNDLES) == 8
    assert {(kind, precision) for kind in BUNDLES for precision in ("fp32", "fp16")} <= {(kind, split(name)[0]) for kind, name in CASES}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden_answers_are_reproduced(kind, name):
    bundle = Bundle.open(FOLDER / kind)
    check_bounds(name, bundle.variants[name].parity["bounds"], replay(bundle, name))


def test_what_needs_a_newer_version_is_refused():
    with pytest.raises(BundleError, match=rf"needs onnxruntime 1.32 or newer, found {VERSION}; upgrade onnxruntime"):
        load(FOLDER / "causal", precision="fp32")


def test_prompts_of_several_lengths_and_their_answers():
    with load(FOLDER / "causal", precision="fp32@web") as model:
        prompts = [[5, 17, 2, 9, 11], [4], [8, 9, 10]]
        together = [answer.tokens for answer in model.generate(prompts, beam=1, max_new_tokens=12)]
        alone = [model.generate([prompt], beam=1, max_new_tokens=12)[0].tokens for prompt in prompts]
    assert together == alone


def test_a_window_that_is_full_still_answers():
    with load(FOLDER / "window", precision="fp32@web") as model:
        (answer,) = model.generate([list(range(3, 40))], beam=1, min_new_tokens=20, max_new_tokens=20)
    assert len(answer.tokens) == 20
