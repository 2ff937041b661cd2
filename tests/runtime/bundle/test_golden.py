"""Golden answers by case: inputs, outputs, and rows without padding."""

from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import BundleError
from onnxport.runtime.bundle import golden

SOURCES = {"source_ids": np.array([[5, 6, 1], [7, 1, 1]]), "source_mask": np.array([[1, 1, 0], [1, 0, 0]], np.int32)}


def test_arrays_come_by_case_and_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **{"case1/in/x": np.ones(2), "case0/out/y": np.zeros(1), "case0/in/x": np.ones(3)})
    cases = golden.read(tmp_path / "golden.npz")
    assert list(cases) == ["case0", "case1"]
    assert golden.inputs(cases["case0"]).keys() == {"x"} and golden.outputs(cases["case0"]).keys() == {"y"}
    assert golden.inputs(cases["case0"])["x"].shape == (3,)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(b"PK")
    with pytest.raises(BundleError, match="export the model again"):
        golden.read(tmp_path / "golden.npz")


def test_rows_are_without_padding() -> None:
    assert golden.sources(SOURCES) == golden.prompts(SOURCES) == [[5, 6], [7]]
    causal = {"input_ids": np.array([[5, 6], [7, 1]]), "lengths": np.array([2, 1])}
    assert golden.prompts(causal) == [[5, 6], [7]]
    assert golden.prompts({"in/x": np.ones(1)}) == []


@pytest.mark.parametrize("lengths", [{}, {"target_lengths": np.array([[2], [1]], np.int32)}])
def test_targets_have_a_length_each(lengths: dict[str, np.ndarray]) -> None:
    ids, found = golden.targets({"target_ids": np.array([[5, 6], [7, 1]]), **lengths})
    assert ids.shape == (2, 2) and found.tolist() == ([2, 1] if lengths else [2, 2]) and found.dtype == np.int64


def test_what_does_not_fit_is_an_error() -> None:
    for case in ({**SOURCES, "source_mask": np.ones((1, 3))}, {"source_ids": np.array([["a"]])}):
        with pytest.raises(ValueError):
            golden.prompts(case)
