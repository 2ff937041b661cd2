"""Changes bundles and sources at random and looks what becomes of them.

python benchmarks/fuzz.py --seconds 600 --bundle DIR --source FOLDER --source model.onnx

Every case changes one file of a copy: of a bundle its manifest, a graph, the tokenizer or the golden answers (the manifest then has the
hash of what was changed, as an attacker would see to), of a source a JSON file, the header of a safetensors file or the ONNX file. The
bundle is then opened, shown, verified, loaded and asked; the source is read. An answer or an OnnxportError is right. Anything else is a
finding: another exception, a process that dies, a case that takes more than 60 seconds or more than 8 GiB.
A case is TARGET:SEED, and `--case` runs it again by itself. A process that dies within ONNX Runtime also where it loads and runs the graph
alone is counted as ONNX Runtime's own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: children are forked, and OpenMP's threads do not come along
LIMIT_S, LIMIT_BYTES = 60, 8 << 30
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), 0.1, 1000000,
    "", "x", "0", "../x", "/etc/hostname", "\0", "\ud800", "\x1b[31m", "é" * 300, "null", "1e5", "fp32",
    [], {}, [[]], [None], {"": {}}, [2**63], ["a", "a"],
)  # fmt: skip
ALONE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
sizes = {value.name: [size if isinstance(size, int) else 2 for size in value.shape] for value in session.get_inputs()}
session.run(None, {value.name: np.ones(sizes[value.name], kinds.get(value.type, np.int64)) for value in session.get_inputs()})
"""


# ---- changes


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((*path, key), *places(value[key], (*path, key)))]


def changed_json(value: Any, draw: random.Random) -> Any:
    """A copy with one to three values replaced, left out, moved or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            return copy.deepcopy(draw.choice(HOSTILE))
        *above, key = draw.choice(found)
        holder = value
        for part in above:
            holder = holder[part]
        match draw.randrange(6):
            case 0:
                del holder[key]
            case 1:
                *other, last = draw.choice(found)
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    source = value
                    for part in (*other, last):
                        source = source[part]
                    holder[key] = copy.deepcopy(source)
            case 2 if isinstance(holder, dict):
                holder[str(draw.choice(HOSTILE))] = holder.pop(key)
            case 3 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
                holder[key] = draw.choice(
                    (holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, holder[key] << 40, float(holder[key]))
                )
            case _:
                holder[key] = copy.deepcopy(draw.choice(HOSTILE))
    return value


def json_bytes(value: Any, draw: random.Random) -> bytes:
    """JSON, now and then damaged as text."""
    data = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    return changed_bytes(data, draw) if draw.random() < 0.15 else data


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """A copy with some bytes flipped, left out, doubled or put in."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not made:
            break
        place, size = draw.randrange(len(made)), draw.choice((1, 1, 2, 8, 64))
        match draw.randrange(5):
            case 0:
                made[place] = draw.randrange(256)
            case 1:
                made[place] ^= 1 << draw.randrange(8)
            case 2:
                del made[place : place + size]
            case 3:
                made[place:place] = made[place : place + size]
            case _:
                made[place : place + size] = draw.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * size
    return bytes(made if draw.random() < 0.9 else made[: draw.randrange(len(made) + 1)])


def changed_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a changed header; its length is right most times."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json_bytes(changed_json(json.loads(data[8 : 8 + size]), draw), draw)
    said = len(header) if draw.random() < 0.8 else draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) + 8, len(data)))
    return struct.pack("<Q", said) + header + data[8 + size :]


def changed_graph(data: bytes, draw: random.Random) -> bytes:
    """An ONNX file, changed as bytes or, half the times, in what it says."""
    if draw.random() < 0.5:
        return changed_bytes(data, draw)
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(draw.choice((1, 1, 2))):
        draw.choice((_change_tensor, _change_node, _change_value))(model.graph, draw)
    return model.SerializeToString()


def _change_tensor(graph: Any, draw: random.Random) -> None:
    if not graph.initializer:
        return
    tensor = draw.choice(graph.initializer)
    match draw.randrange(3):
        case 0 if tensor.external_data:
            entry = draw.choice(tensor.external_data)
            entry.value = draw.choice(("-1", str(2**63), "", "x", "0", "../../x", "weights.bin", "*/_ORT_MEM_ADDR_/*", str(2**40)))
        case 1 if tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice((0, 1, -1, 2**40, 2**62, 3))
        case _:
            tensor.data_type = draw.randrange(30)


def _change_node(graph: Any, draw: random.Random) -> None:
    if not graph.node:
        return
    node, other = draw.choice(graph.node), draw.choice(graph.node)
    match draw.randrange(3):
        case 0 if node.attribute:
            draw.choice(node.attribute).i = draw.choice((0, -1, 1, 2**40, 2**63 - 1))
        case 1 if node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(("", "x", *other.output))
        case _:
            node.op_type = draw.choice((other.op_type, "If", "Loop", "Scan", "Constant", "Reshape", "x"))


def _change_value(graph: Any, draw: random.Random) -> None:
    values = [*graph.input, *graph.output]
    value = draw.choice(values)
    shape = value.type.tensor_type.shape
    if shape.dim and draw.random() < 0.5:
        draw.choice(shape.dim).dim_value = draw.choice((0, 1, 2**40, 7))
    else:
        value.name = draw.choice(("x", "", draw.choice(values).name))


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": lambda data, draw: json_bytes(changed_json(json.loads(data), draw), draw),
    ".safetensors": changed_header,
    ".onnx": changed_graph,
}


def changed_file(path: Path, draw: random.Random) -> None:
    """Changes a file in place, a link's own copy."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(CHANGES.get(path.suffix, changed_bytes)(data, draw))


# ---- cases


def bundle_case(base: Path, place: Path, draw: random.Random) -> Path:
    """A bundle with one file changed."""
    _copy(base, place)
    manifest = json.loads((place / "bundle.json").read_text())
    name = draw.choice(("bundle.json", *[n for n in manifest["files"] if n.endswith((".onnx", ".json", ".npz"))]))
    if draw.random() < 0.5 or name == "bundle.json":
        changed_file(place / "bundle.json", draw)
        return place
    changed_file(place / name, draw)
    content = (place / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (place / "bundle.json").unlink()
    (place / "bundle.json").write_text(json.dumps(manifest))
    return place


def use_bundle(place: Path) -> None:
    """Everything that a bundle is opened for. OnnxportError."""
    from onnxport.cli.overview import overview, summary
    from onnxport.runtime import load
    from onnxport.runtime.bundle.reader import Bundle
    from onnxport.runtime.verify import verify

    bundle = Bundle.open(place)
    json.dumps(summary(bundle), allow_nan=False)
    overview(bundle)
    told = []
    for use in (lambda: verify(place, threads=1), lambda: _ask(load(place, threads=1))):
        try:
            use()
        except Exception as error:
            from onnxport.errors import OnnxportError

            if not isinstance(error, OnnxportError):
                raise
            told.append(error)
    if told:
        raise told[0]


def _ask(model: Any) -> None:
    import numpy as np

    with model:
        if model.bundle.generation is not None:
            model.generate([[5, 9], [3]], max_new_tokens=4, timeout=30)
            list(model.stream([5, 9], max_new_tokens=3, timeout=30))
            return
        task = {"embedding": model.encode, "classification": model.classify}.get(model.task)
        if task is not None:
            task(["a text", "b"])
        encoder = model.encoding()
        axes = {value.name: value.shape for value in encoder.run.__self__.inputs.values()}  # type: ignore[attr-defined]
        sizes = {name: [size if isinstance(size, int) and size < 100 else 2 for size in shape] for name, shape in axes.items()}
        model.run({name: np.ones(sizes[name], kind) for name, kind in encoder.inputs.items()})


def source_case(base: Path, place: Path, draw: random.Random) -> Path:
    """A source with one file changed."""
    _copy(base if base.is_dir() else base.parent, place)
    if base.is_file():
        changed_file(place / base.name, draw)
        return place / base.name
    files = sorted(path for path in place.rglob("*") if path.suffix in (".json", ".safetensors") and path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    changed_file(draw.choice(weights if weights and draw.random() < 0.3 else files), draw)
    return place


def use_source(place: Path) -> None:
    """Reads a source. OnnxportError."""
    from onnxport.export.resolve import resolve

    resolve(str(place))


def _copy(base: Path, place: Path) -> None:
    """A copy of links, which are as good as files and cost nothing."""
    shutil.rmtree(place, ignore_errors=True)
    for path in base.rglob("*"):
        target = place / path.relative_to(base)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())


class Target:
    """A bundle or source that cases are made of. kind: "bundle" or "source"."""

    def __init__(self, kind: str, base: Path) -> None:
        self.kind, self.base = kind, base.resolve()
        self.name = f"{kind}-{base.name}"
        self._make, self._use = (bundle_case, use_bundle) if kind == "bundle" else (source_case, use_source)

    def run(self, seed: int, folder: Path) -> str:
        """How a case ended: "answered", or the name of the OnnxportError. Any other exception is a finding."""
        from onnxport.errors import OnnxportError

        place = self._make(self.base, folder / "case", random.Random(f"{self.name}:{seed}"))
        try:
            self._use(place)
        except OnnxportError as error:
            if "\n" in str(error):
                raise AssertionError(f"a refusal of several lines: {error}") from error
            return type(error).__name__
        return "answered"


# ---- processes


def work(targets: list[Target], first: int, folder: Path, seconds: float, log: Path) -> None:
    """Runs cases one after the other; the log has a line as each begins and as it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    until, seed = time.monotonic() + seconds, first
    with log.open("a", buffering=1) as told:
        faulthandler.register(signal.SIGUSR1, told, all_threads=False)
        while time.monotonic() < until:
            target = targets[seed % len(targets)]
            told.write(f"begin {target.name} {seed}\n")
            try:
                told.write(f"end {target.run(seed, folder)}\n")
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = " ".join(str(error).split())[:200]
                told.write(f"finding {type(error).__name__}: {said} ({Path(where.filename).name}:{where.lineno})\n")
            seed += 1


def own_crash(target: Target, seed: int, folder: Path) -> bool:
    """Whether ONNX Runtime alone dies of the case's graphs too."""
    place = (bundle_case if target.kind == "bundle" else source_case)(target.base, folder / "case", random.Random(f"{target.name}:{seed}"))
    for graph in [place] if place.is_file() else sorted(place.rglob("*.onnx")):
        done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", ALONE, str(graph)])
        if done < 0:
            return True
    return False


def fuzz(targets: list[Target], seconds: float, first: int, out: Path) -> dict[str, Any]:
    """Cases in child processes until the time is over; what they ended with. out: a folder for the log and checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    log, began, seed = out / "log.txt", time.monotonic(), first
    log.write_text("")
    result: dict[str, Any] = {"first seed": first, "findings": [], "ONNX Runtime's own": []}
    by_name = {target.name: target for target in targets}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while (left := seconds - (time.monotonic() - began)) > 0:
            number = os.fork()
            if number == 0:
                with contextlib.suppress(BaseException):
                    quiet = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(quiet, 1)
                    os.dup2(quiet, 2)
                    work(targets, seed, Path(folder), left, log)
                    os._exit(0)
                os._exit(77)
            size, since = -1, time.monotonic()
            while not os.waitpid(number, os.WNOHANG)[0]:
                if (now := log.stat().st_size) != size:
                    size, since = now, time.monotonic()
                elif time.monotonic() - since > LIMIT_S:
                    os.kill(number, signal.SIGUSR1)
                    time.sleep(1)
                    os.kill(number, signal.SIGKILL)
                time.sleep(0.2)
                _checkpoint(result, log, out, began)
            lines = log.read_text(errors="replace").splitlines()
            begun = [line.split() for line in lines if line.startswith("begin ")]
            seed = int(begun[-1][2]) + 1
            last = next(line for line in reversed(lines) if line.startswith(("begin", "end", "finding")))
            if last.startswith("begin"):
                _, name, number_of = last.split()
                hung = any(line.startswith(("Current thread", "Thread ", "  File")) for line in lines[lines.index(last) :])
                case, kind = f"{name}:{number_of}", "hangs" if hung else "the process dies"
                own = not hung and own_crash(by_name[name], int(number_of), Path(folder))
                result["ONNX Runtime's own" if own else "findings"].append(f"{case} {kind}")
            _checkpoint(result, log, out, began)
    return result


def _checkpoint(result: dict[str, Any], log: Path, out: Path, began: float) -> None:
    case, ends, found = "", Counter[str](), []
    for line in log.read_text(errors="replace").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "begin":
            case = rest.replace(" ", ":")
        elif kind == "end":
            ends[rest] += 1
        elif kind == "finding":
            found.append(f"{case} {rest}")
    died = [one for one in result["findings"] if one.endswith(("hangs", "dies"))]
    result |= {
        "seconds": round(time.monotonic() - began),
        "cases": sum(ends.values()) + len(found),
        "ends": dict(ends),
        "findings": died + found,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> int:
    """Prints the result as JSON; exit code 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--source", type=Path, action="append", default=[])
    parser.add_argument("--case", help="TARGET:SEED: run this one here")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    targets = [Target("bundle", path) for path in options.bundle] + [Target("source", path) for path in options.source]
    if not targets:
        parser.error("nothing to change: give --bundle or --source")
    if options.case:
        name, _, seed = options.case.rpartition(":")
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            print(next(target for target in targets if target.name == name).run(int(seed), Path(folder)))
        return 0
    for target in targets:  # what they import is imported once, and not within the time of a case
        if target.kind == "source":
            use_source(target.base)
    result = fuzz(targets, options.seconds, options.seed, options.out)
    print(json.dumps(result, indent=1))
    return bool(result["findings"])


if __name__ == "__main__":
    sys.exit(main())
