"""The runtime brings nothing but numpy, onnxruntime and tokenizers, shown in fresh processes."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
before = set(sys.modules)
import onnxport.runtime
import onnxport.runtime.bundle
assert not {"ctypes", "shutil"} & (set(sys.modules) - before), "what only writers need is imported"
import onnxport.runtime.sessions
assert not {"numpy", "onnxruntime", "tokenizers"} & (set(sys.modules) - before), "importing these is not free"
from onnxport.runtime import load
import onnxport.runtime.verify, onnxport.runtime.bundle.writer
with load(sys.argv[1], threads=1, verify=True) as model:
    model.generate(["w5 w6", "w7"], max_new_tokens=5)
    model.generate("w5", beam=2, max_new_tokens=5)
    model.generate("w5", temperature=1.0, seed=1, max_new_tokens=5)
    list(model.stream("w5", max_new_tokens=5))
    model.generate("w5. w6", long="segments", max_new_tokens=5)
onnxport.runtime.verify.verify(sys.argv[1])
import numpy, onnxruntime, tokenizers
files = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
import sysconfig
site = sysconfig.get_path("purelib")
print(*sorted({f[len(site) + 1:].split("/")[0] for f in files if f.startswith(site)}), sep="\\n")
"""
ALLOWED = {"numpy", "onnxruntime", "tokenizers"}


def test_a_fresh_process_imports_nothing_heavy(tiny_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tiny_bundle)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {name for name in done.stdout.split() if not name.startswith(("_", "__editable__"))}
    assert found >= ALLOWED
    assert found <= ALLOWED, found - ALLOWED
