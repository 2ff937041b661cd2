"""Pieces of a weight are worked on by several threads, in their order, and by one where there is one core."""

import threading

import numpy as np
import pytest

from onnxport.quantize.schemes import threads
from onnxport.quantize.schemes.blocks import by_rows, least_error
from onnxport.quantize.schemes.blocks.least_error import find_grid, quantize_nearest
from onnxport.quantize.schemes.blocks.rounding import in_blocks


@pytest.mark.parametrize("cores", [1, 2])
def test_results_come_in_the_order_of_the_pieces(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: cores)
    used: set[str] = set()
    both = threading.Barrier(cores, timeout=30)

    def work(i: int) -> int:
        if i < cores:
            both.wait()  # nobody passes unless as many are here at a time
        used.add(threading.current_thread().name)
        return i * i

    assert list(threads.in_threads(work, range(20))) == [i * i for i in range(20)]
    assert len(used) == cores


def test_an_error_in_a_piece_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        list(threads.in_threads(lambda i: 1 // i, [2, 1, 0, 3]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_do_not_depend_on_how_a_weight_is_cut(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((37, 200)).astype(np.float32)  # the last block of a row is short
    costs = np.random.default_rng(1).random(200).astype(np.float32)
    whole = quantize_nearest(weight, 4, 32, symmetric, costs)
    grid = find_grid(in_blocks(weight, 32), 4, symmetric, in_blocks(costs[None], 32))
    monkeypatch.setattr(by_rows, "PIECE", 500)
    monkeypatch.setattr(least_error, "PIECE", 500)
    cut = quantize_nearest(weight, 4, 32, symmetric, costs)
    assert np.array_equal(cut.codes, whole.codes) and np.array_equal(cut.grid.scale, whole.grid.scale)
    assert np.array_equal(grid.scale, whole.grid.scale)


def test_the_grid_is_the_best_of_all_that_are_tried() -> None:
    blocks = np.random.default_rng(0).standard_normal((3, 2, 32)).astype(np.float32)
    found = find_grid(blocks, 4, True)

    def error(scale: np.ndarray) -> np.ndarray:
        codes = np.rint(blocks / scale[:, :, None]).clip(-8, 7)
        return ((codes * scale[:, :, None] - blocks) ** 2).sum(2)

    extreme = np.where(blocks.max(2) >= -blocks.min(2), blocks.max(2), blocks.min(2))
    others = [error((-extreme / steps).astype(np.float16).astype(np.float32)) for steps in least_error.STEPS]
    assert (error(found.scale) <= np.min(others, 0) * 1.0001).all()
    assert (error(found.scale) < others[10] * 0.999).any()  # 8 steps, which reach the largest weight
