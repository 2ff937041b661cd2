"""Whatever lies where an .npz file should be, the caller's error says so; errors are relative to what varies."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import DataError
from onnxport.runtime.arrays import padded, read_npz, relative_error, softmax, unpadded


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
