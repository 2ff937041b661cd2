"""Whatever lies where an .npz file should be, the caller's error says so; errors are relative to what varies."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import DataError
from onnxport.runtime import arrays as module
from onnxport.runtime.arrays import npz_bytes, padded, read_npz, relative_error, softmax, unpadded


def saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def damaged() -> bytes:
    data = bytearray(saved(x=np.arange(1000)))
    data[60:200] = bytes(140)
    return bytes(data)


def single() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def test_arrays_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(saved(x=np.arange(3), **{"case/y": np.ones(2, np.float16)}))
    found = read_npz(tmp_path / "a.npz", DataError, "write it anew")
    assert sorted(found) == ["case/y", "x"]
    assert found["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"text", single(), damaged(), saved(x=np.arange(9))[:-30], packed(x=single()[:90]), packed(x=b"text"),
     saved(x=np.array([{}], object))],
)  # fmt: skip
def test_other_files_are_the_callers_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"a.npz: not a readable .npz file.*; write it anew$"):
        read_npz(tmp_path / "a.npz", DataError, "write it anew")


def array(shape: str, values: bytes, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


@pytest.mark.parametrize("shape", ["(9999999999999,)", "(-4,)", "(18446744073709551617,)", "(65536,) * 4", "(3,)", "(2, 0)"])
def test_a_header_that_says_more_or_less_than_there_is(tmp_path: Path, shape: str) -> None:
    (tmp_path / "a.npz").write_bytes(packed(x=array("(4,)", bytes(16)), y=array(shape, bytes(16))))
    with pytest.raises(DataError, match="not a readable"):
        read_npz(tmp_path / "a.npz", DataError, "write it anew")


def test_a_small_file_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNPACKED", 10_000)
    (tmp_path / "a.npz").write_bytes(saved(x=np.zeros(3000, np.float32)))
    with pytest.raises(DataError, match="expected at most 10000"):
        read_npz(tmp_path / "a.npz", DataError, "write it anew")


def test_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DataError, match="FIFO"):
        read_npz(tmp_path / "a.npz", DataError, "write it anew")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 3)),
        np.float32(2.5),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(6)[::2],
        np.array(["ab", "c"]),
        np.array([True]),
    ],
)
def test_arrays_come_back_as_they_were(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "a.npz").write_bytes(npz_bytes({"file": values, "case/x": np.ones(2, ">i2")}))
    found = read_npz(tmp_path / "a.npz", DataError, "write it anew")
    assert found["file"].dtype == values.dtype and found["file"].shape == values.shape
    assert np.array_equal(found["file"], values) and found["file"].flags.writeable
    assert found["case/x"].tolist() == [1, 1]
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["file"], values)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.npz"):
        read_npz(tmp_path / "a.npz", DataError, "write it anew")
    with pytest.raises(DataError, match="readable"):
        read_npz(tmp_path, DataError, "write it anew")


def test_an_error_is_relative_to_what_varies() -> None:
    golden = np.array([[1.0, 3.0], [5.0, 7.0]])
    assert relative_error(golden, golden) == 0
    assert relative_error(golden, golden + 0.5) == relative_error(golden + 100, golden + 100.5) == 0.5
    assert relative_error(np.full((2, 2), 4.0), np.full((2, 2), 5.0)) == 0.25
    assert relative_error(np.zeros(2), np.ones(2)) == 1
    assert relative_error(golden, np.full_like(golden, np.nan)) == np.inf


def test_rows_are_padded_and_back() -> None:
    ids, mask = padded([[5, 6], [7]], 1)
    assert ids.tolist() == [[5, 6], [7, 1]] and mask.tolist() == [[1, 1], [1, 0]]
    assert unpadded(ids, mask) == [[5, 6], [7]]


def test_shares_add_up_to_one() -> None:
    shares = softmax(np.array([1e4, 1e4, -1e4], np.float32))
    assert shares.tolist() == [0.5, 0.5, 0.0] and shares.dtype == np.float32
