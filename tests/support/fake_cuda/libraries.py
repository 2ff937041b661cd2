"""Builds the libraries: `python libraries.py CAPI OUT`, CAPI being the folder onnxruntime/capi of an installed onnxruntime-gpu.

Which names they need stands in ONNX Runtime's own libraries; nm and a C compiler find and make them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEVICE = Path(__file__).with_name("device.c")
EXTRA = ("libcuda.so.1", "libcurand.so.10", "libnvinfer.so.10", "libnvonnxparser.so.10")
ALLOCATES = "int {name}(void **handle) {{ *handle = calloc(1, 64); return 0; }}"
SUCCEEDS = "int {name}(void) {{ return 0; }}"


def _undefined(library: Path) -> list[tuple[str, str]]:
    """Names that a library wants from others, and the version of each, which is the file's name for NVIDIA's; "" without one."""
    lines = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
    return [(name, version.lstrip("@")) for name, _, version in (line.split()[-1].partition("@") for line in lines)]


def _loaded_by_name(library: Path) -> list[str]:
    """Names of cuDNN that are looked up when they are needed."""
    return sorted({found.decode() for found in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", library.read_bytes())})


def build(capi: Path, out: Path) -> None:
    """Writes a library for each that onnxruntime-gpu in `capi` wants, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, set[str]] = {}
    for library in capi.glob("libonnxruntime_providers_*.so"):
        for name, version in _undefined(library):
            if version.startswith("libcu"):
                wanted.setdefault(version, set()).add(name)
            elif re.match(r"cu[A-Z]|create[A-Z]|get[A-Z]", name):
                for extra in EXTRA:
                    wanted.setdefault(extra, set()).add(name)
    wanted.setdefault("libcudnn.so.9", set()).update(_loaded_by_name(capi / "libonnxruntime_providers_cuda.so"))
    for file, names in wanted.items():
        _compile(file, names, out)


def _compile(file: str, names: set[str], out: Path) -> None:
    code = DEVICE.read_text() if "cudart" in file else "#include <stdlib.h>\n"
    there = set(re.findall(r"^[a-z][\w ]*[ *]+(\w+)\(", code, re.MULTILINE))
    creates = re.compile(r"(cublas|cublasLt|cudnn)Create\w*")
    lines = [(ALLOCATES if creates.fullmatch(name) else SUCCEEDS).format(name=name) for name in sorted(names - there)]
    (out / "code.c").write_text(code + "\n".join(lines) + "\n")
    (out / "names.map").write_text(f"{file} {{ global: *; }};\n")
    versions = [] if file in EXTRA else [f"-Wl,--version-script={out / 'names.map'}"]
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", out / file, out / "code.c", f"-Wl,-soname,{file}", *versions], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
