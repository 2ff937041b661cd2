"""The settings of memory are made before PyTorch is there, and leave alone what a user has set."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = "import os; from onnxport.cli.memory import use_less; use_less(); print(os.environ['THP_MEM_ALLOC_ENABLE'])"
HEAPS = """
import ctypes, sys, threading
from onnxport.cli.memory import use_less
use_less()
workers = [threading.Thread(target=lambda: [bytearray(100_000) for _ in range(40)]) for _ in range(8)]  # of a heap
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


def _run(code: str, *arguments: str, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment | settings, timeout=60).stdout


def test_a_users_own_setting_stays() -> None:
    assert _run(SHOWN).strip() == "1" and _run(SHOWN, THP_MEM_ALLOC_ENABLE="0").strip() == "0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of glibc")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    counts = []
    for settings in ({}, {"MALLOC_ARENA_MAX": "4"}):
        _run(HEAPS, str(tmp_path / "info"), **settings)
        counts.append((tmp_path / "info").read_text().count("<heap "))
    assert counts[0] == 1 < counts[1]
