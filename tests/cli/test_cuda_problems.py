"""What `doctor` says of an onnxruntime-gpu that cannot run."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from onnxport.cli.cuda_problems import LIBRARIES, cuda_problems

GPU = {"gpu": "a GPU", "driver": "580.1", "cuda": "13.0", "memory_bytes": 1 << 34}
HERE = SimpleNamespace(__version__="1.31.1", cuda_version="13.0", preload_dlls=lambda: print("Failed to load"))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of libraries that can be loaded, all at first."""
    there = set(LIBRARIES["13"])

    def load(name: str) -> None:
        if name not in there:
            raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    return there


def test_a_machine_with_everything_has_no_problem(libraries: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(cuda_problems(HERE, GPU)) == []
    assert capsys.readouterr().out == ""  # what ONNX Runtime prints is no result of the command


def test_libraries_that_are_missing_are_named_with_their_packages(libraries: set[str]) -> None:
    libraries -= {"libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9"}
    (problem,) = cuda_problems(HERE, GPU)
    assert problem == (
        "CUDA's libcublas.so.13, libcublasLt.so.13, libcudnn.so.9 cannot be loaded: pip install nvidia-cublas nvidia-cudnn-cu13 "
        "(onnxport[gpu] brings them)"
    )


@pytest.mark.parametrize(
    ("onnxruntime", "gpu", "message"),
    [
        ({}, {"reason": "there is no NVIDIA driver"}, "CUDA cannot run: there is no NVIDIA driver; install NVIDIA's driver"),
        ({}, GPU | {"cuda": "12.8", "driver": "570.1"}, "built for CUDA 13.0, and the driver 570.1 takes CUDA 12.8 at most"),
        ({"__version__": "1.30.0"}, GPU, "onnxruntime-gpu is 1.30.0, expected 1.31 or newer"),
    ],
)
def test_a_driver_or_version_that_does_not_fit(libraries: set[str], onnxruntime: dict[str, Any], gpu: dict[str, Any], message: str) -> None:
    (problem,) = cuda_problems(SimpleNamespace(**(vars(HERE) | onnxruntime)), gpu)
    assert message in problem


def test_a_driver_for_a_newer_cuda_of_the_same_kind_is_taken(libraries: set[str]) -> None:
    assert list(cuda_problems(HERE, GPU | {"cuda": "13.2"})) == []
