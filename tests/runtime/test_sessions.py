"""Threads fit the container; sessions run where they were asked to."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxport.errors import DeviceError
from onnxport.runtime.processor import cores, quota
from onnxport.runtime.sessions import CUDA, Sessions


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert quota(write(tmp_path, files)) == expected


@pytest.mark.parametrize(("limit", "expected"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 6), ("900000 100000", 6)])
def test_cores_are_the_least_of_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert cores(write(tmp_path, {"cpu.max": limit})) == expected


def test_threads_given_are_threads_used() -> None:
    options = Sessions.on("cpu", 3).options()
    assert options.intra_op_num_threads == 3
    assert Sessions.on("cpu").threads == cores()


def test_more_threads_than_cores_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxport.runtime.processor.cores", lambda: 2)
    spinning = "session.intra_op.allow_spinning"
    assert Sessions("cpu", 2).options().get_session_config_entry(spinning) == "1"
    assert Sessions("cpu", 3).options().get_session_config_entry(spinning) == "0"


def test_on_cuda_no_node_may_fall_back() -> None:
    assert Sessions("cuda", 1).options().get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


@pytest.mark.parametrize(("kinds", "refused"), [({"Shape", "Squeeze", "Concat"}, None), ({"Squeeze", "QMoE"}, "QMoE")])
def test_only_reckoning_with_shapes_may_stay_on_the_cpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, kinds: set[str], refused: str | None
) -> None:
    import onnxruntime

    real, cuda = onnxruntime.InferenceSession, CUDA.provider
    nodes = [SimpleNamespace(op_type=kind) for kind in kinds]
    parts = [SimpleNamespace(ep_name=cuda, get_nodes=lambda: [SimpleNamespace(op_type="MatMul")])]
    parts.append(SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes))

    class OnCuda(real):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, *_: object, **__: object) -> None:
            super().__init__(path, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [cuda, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
            return parts

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    if refused is None:
        Sessions("cuda", 1).open(tiny_bundle / "fp32/decoder.onnx")
        return
    with pytest.raises(DeviceError, match=f"cuda has no kernel for {refused} here; use device cpu"):
        Sessions("cuda", 1).open(tiny_bundle / "fp32/decoder.onnx")


def test_a_session_that_runs_elsewhere_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what ONNX Runtime gives when the CUDA libraries are missing: a session on the CPU and a line in the log
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, *_, **__: real(path, providers=["CPUExecutionProvider"]))
    with pytest.raises(DeviceError, match="asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        Sessions("cuda", 1).open(tiny_bundle / "fp32/decoder.onnx")
