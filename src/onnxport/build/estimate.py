"""What an export would write and take, from config.json and the headers of the weights alone: `onnxport export --dry-run`."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.build.request import BuildOptions, in_making_order, variants
from onnxport.build.work import FUSED
from onnxport.compare.texts import calibration_texts, golden_texts, token_rows
from onnxport.errors import CheckpointError, OnnxportError, OutputError, UsageError, one_line
from onnxport.export.config_checks import read_json, repeated_names
from onnxport.extras import require
from onnxport.files import MOST, read_regular
from onnxport.graph.lazy import LEAST
from onnxport.quantize.activation_statistics import Hessian
from onnxport.quantize.plan import Plan, Scheme
from onnxport.quantize.precisions import DEFAULT, made_as
from onnxport.quantize.recipe import SMALL_TABLE, VOCABULARY, spares_vocabulary
from onnxport.quantize.safeguards.sensitive_weights import LARGE
from onnxport.quantize.schemes.apply import FEWEST_INPUTS
from onnxport.quantize.schemes.blocks.blockwise import block_size
from onnxport.runtime.bundle.variant_names import CPU, split
from onnxport.runtime.processor import cores
from onnxport.runtime.sessions import CUDA
from onnxport.runtime.tokenizer import TextTokenizer

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
WEIGHTS = "weights.bin"
LIBRARIES = 700 * 2**20  # bytes that the packages of an export take by themselves
KEPT = 2**28  # bytes of weights of the original that are kept at least, for all texts that it reads
COSTS = 2**29  # bytes of what errors of weights cost, of which as many are held at once
ROOM = 0.95  # of what weights take by the headers: an export that needs so much surely does not fit
IDS = 600  # tokens of random ids, and of their answers
ORIGINAL, CHECKS, RUNS = 1.3, 1.0, 2.0  # how often the golden texts are read by the original and a variant, and those of fits by float32
SHORTEST = 1e-4  # seconds: clocks of processors are coarse
CAUSAL = ("ForCausalLM", "LMHeadModel")  # end the names of classes whose files are known from their headers
GRAPH = 600  # bytes of a node in a graph file
NODES = 22  # of a layer
HEAD = "lm_head.weight"
TOKENS = ("embed_tokens.weight", "wte.weight", HEAD)


@dataclass(frozen=True)
class Estimate:
    """files: path in the bundle → bytes. parameters: of the source. memory: the most anonymous memory. disk: the most at any time. seconds:
    of this machine, if nothing else runs; within a factor of two or so."""

    files: dict[str, int]
    parameters: int
    memory: int
    disk: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"bytes": sum(self.files.values())}


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    width: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def is_table(self) -> bool:
        """Of tokens, or what scores them."""
        return self.name.endswith(TOKENS)

    @property
    def is_matrix(self) -> bool:
        """Whether schemes are for it: a matrix, or those of all experts of a layer."""
        return len(self.shape) in (2, 3) and min(self.shape[1:]) >= FEWEST_INPUTS

    @property
    def is_experts(self) -> bool:
        """Whether it is a matrix for each expert of a layer; these are rounded to nearest, and their codes lie in memory."""
        return len(self.shape) == 3

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and inputs of a matrix; those of experts stand below each other."""
        return self.numbers // self.shape[-1], self.shape[-1]


def estimate(source: Any, precisions: Sequence[str] | None = None, targets: Sequence[str] = (CPU,)) -> Estimate:
    """Of a folder of a language model in safetensors.

    Raises:
        UsageError: the source is another; a precision is not known. CheckpointError: files are missing or damaged.
    """
    names, _ = variants(precisions or DEFAULT, targets)
    BuildOptions(names).check()
    folder = Path(source)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UsageError(f"--dry-run: {source} is no folder with config.json and safetensors; leave --dry-run out")
    config = json.loads(read_regular(folder / "config.json", MOST))
    if other := [name for name in config.get("architectures") or () if not str(name).endswith(CAUSAL)]:
        raise UsageError(f"--dry-run: {source} holds a {other[0]!s:.80}, expected a language model; leave --dry-run out")
    tensors = _read(folder, config)
    found = {"golden.npz": _goldens(config)}
    if (tokenizer := folder / "tokenizer.json").is_file():
        found["tokenizer.json"] = tokenizer.stat().st_size
    found |= _variant_files(names, tensors, config)
    return Estimate(
        files=found,
        parameters=sum(tensor.numbers for tensor in tensors),
        memory=_memory(names, tensors, config),
        disk=sum(found.values()) + _beside(names, tensors, found),
        seconds=_seconds(names, tensors, tokenizer),
    )


def check_room(source: Any, out: Path, precisions: Sequence[str], resume: bool = False) -> None:
    """OutputError where the weights of a language model in safetensors, as their headers tell them, do not fit the disk of `out`, or the
    codes of a variant, until it is written, that of temporary files (TMPDIR).

    What `.OUT.work` and a bundle at `out` hold takes its room already. resume: what is fitted lies beside `out`. Other sources, and those
    that an export refuses, pass.
    """
    try:
        config = json.loads(read_regular(Path(source) / "config.json", MOST))
        if not str(config["architectures"][0]).endswith(CAUSAL):
            return
        tensors = _read(Path(source), config)
        files = _variant_files(precisions, tensors, config)
    except (OnnxportError, OSError, ValueError, TypeError, LookupError, AttributeError):
        return
    kept = out.absolute().with_name(f".{out.absolute().name}.work")
    there = {path: path.stat().st_size for path in kept.rglob(f"*/{WEIGHTS}") if path.is_file() and path.parent.name != FUSED}
    begun, written = {path.parent.name for path in there}, -sum(there.values()) / ROOM
    codes = both = 0.0
    for name in in_making_order([name for name in precisions if f"{name}/{WEIGHTS}" in files]):
        own = 0 if name in begun else _codes(name, tensors, fitted=not resume)
        written += files[f"{name}/{WEIGHTS}"]
        codes, both = max(codes, own), max(both, written + own)
    place, scratch = _nearest(out.absolute().parent), _nearest(Path(tempfile.gettempdir()))
    if place is None or scratch is None:  # a drive that is not there
        return
    weights = f"the weights of {', '.join(precisions)}"
    _check_free(place, written, f"{weights} take", "free space, name fewer precisions, or choose another --out")
    if _device(place) == _device(scratch):
        _check_free(place, both, f"{weights} take, with temporary files,", "free space, or set TMPDIR to a folder of another disk")
    else:
        _check_free(scratch, codes, "temporary files of a variant take", "free space, or set TMPDIR to a folder with room")


def _check_free(place: Path, need: float, what: str, advice: str) -> None:
    """OutputError where the disk of a folder surely has no room."""
    free = shutil.disk_usage(place).free
    if ROOM * need > free:
        raise OutputError(f"{place} has {free / 1e9:.1f} GB free, and {what} {ROOM * need / 1e9:.1f} GB; {advice}")


def _nearest(folder: Path) -> Path | None:
    """The folder, or the first above it that is there."""
    return next((one for one in (folder, *folder.parents) if one.is_dir()), None)


def _device(folder: Path) -> int:
    """The file system that a folder lies in."""
    return folder.stat().st_dev


def _read(folder: Path, config: Mapping[str, Any]) -> list[_Tensor]:
    """The tensors of a folder, those that are tied once. CheckpointError."""
    tensors = list(_headers(folder))
    if config.get("tie_word_embeddings") and any(tensor.name.endswith("embed_tokens.weight") for tensor in tensors):
        return [tensor for tensor in tensors if not tensor.name.endswith("lm_head.weight")]
    return tensors


def _variant_files(names: Sequence[str], tensors: Sequence[_Tensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Files of variants, and their bytes."""
    found: dict[str, int] = {}
    for name in names:
        graph = GRAPH * NODES * int(config.get("num_hidden_layers", 0))
        if (same := _shares_weights(name, names)) is not None:
            found[f"{same}/decoder@{split(name)[1]}.onnx"] = graph
        else:
            found |= {f"{name}/decoder.onnx": graph, f"{name}/{WEIGHTS}": _variant(name, tensors, config)}
    return found


def _headers(folder: Path) -> Iterator[_Tensor]:
    """Name, shape and bytes of a number of every tensor, none of which is read."""
    require("safetensors", "export")
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    places = read_json(index).get("weight_map", {}) if index.is_file() else {}
    if index.is_file() and (twice := repeated_names(index)):
        raise CheckpointError(f"{index} names tensors twice: {', '.join(twice)}; save the model again")
    files = sorted(set(places.values())) or ["model.safetensors"]
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(absent)}; copy them into the folder")
    for file in files:
        try:
            with safe_open(folder / file, "numpy") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
                found = [_Tensor(n, tuple(p.get_shape()), FLOATS[p.get_dtype()]) for n, p in parts.items() if p.get_dtype() in FLOATS]
        except Exception as error:  # a damaged header can make any kind
            raise CheckpointError(f"{folder / file} is not a whole safetensors file: {one_line(error)}; copy it again") from error
        if lost := sorted(name for name, place in places.items() if place == file and name not in parts):
            raise CheckpointError(f"{folder / file} lacks tensors that {index.name} places there: {', '.join(lost)}; copy it again")
        yield from found


def _shares_weights(name: str, names: Sequence[str]) -> str | None:
    """The variant whose file of weights a variant for another target has too, where it is made as that one is; see `shared_files`."""
    target = split(name)[1]
    if target == CPU or (target == CUDA.name and made_as(name).plan != Plan({"*": "fp32"})):
        return None
    before = sorted(names, key=lambda one: split(one)[1] != CPU)
    return next((one for one in before[: before.index(name)] if split(one)[1] != CUDA.name and made_as(one) == made_as(name)), None)


def _variant(precision: str, tensors: Sequence[_Tensor], config: Mapping[str, Any]) -> int:
    plan = _whole_plan(precision, tensors)
    half = 2 if plan.half is not None else 4
    total = sum(_bytes(plan.of(tensor.name), *tensor.sizes) if tensor.is_matrix else half * tensor.numbers for tensor in tensors)
    return total + half * _rotations(config)


def _codes(precision: str, tensors: Sequence[_Tensor], fitted: bool) -> int:
    """Bytes of temporary files at least: codes until they are written and, with `fitted`, those that were fitted to inputs."""
    plan, total = _whole_plan(precision, tensors), 0
    for tensor in tensors:
        scheme = plan.of(tensor.name)
        if tensor.is_matrix and not tensor.is_experts and scheme.kind not in ("fp32", "half"):
            sizes = [tensor.numbers * scheme.bits // 8] + [tensor.numbers] * (fitted and scheme.needs == "hessian")
            total += sum(size for size in sizes if size >= LEAST)
    return total


def _whole_plan(precision: str, tensors: Sequence[_Tensor]) -> Plan:
    """What a precision begins with, and what it leaves a vocabulary."""
    plan = _plan(precision)
    if not spares_vocabulary(plan):
        return plan
    tables = [tensor.name for tensor in tensors if tensor.is_table]
    alone = len(tables) > 1 and sum(tensor.numbers for tensor in tensors) <= LARGE  # of larger models no table is tried in 4 bits
    return Plan(plan.schemes | {name: SMALL_TABLE if alone and not name.endswith(HEAD) else VOCABULARY for name in tables})


def _plan(precision: str) -> Plan:
    """What a precision begins with in a language model that knows the kit's texts."""
    row = made_as(precision)
    return row.on_texts or row.plan or Plan({"*": "int8-rows"})  # a search's own is among those of its size


def _bytes(scheme: Scheme, rows: int, inputs: int) -> int:
    """Of a weight [rows, inputs] with its scales."""
    if scheme.kind in ("fp32", "half"):
        return scheme.bits // 8 * rows * inputs
    if scheme.kind in ("rows", "static"):
        return rows * inputs + 4 * rows
    size = block_size(inputs, scheme.block)
    blocks = rows * -(-inputs // size)
    zero = 0 if scheme.symmetric else blocks * scheme.bits // 8
    return blocks * size * scheme.bits // 8 + zero + (8 if scheme.minimum else 2) * blocks  # scales are stored in float16 where they can be


def _rotations(config: Mapping[str, Any]) -> int:
    """Numbers of the tables of rotary positions."""
    heads, hidden, positions = (config.get(name) for name in ("num_attention_heads", "hidden_size", "max_position_embeddings"))
    if not all(isinstance(value, int) and value > 0 for value in (heads, hidden, positions)):
        return 0
    assert isinstance(heads, int) and isinstance(hidden, int) and isinstance(positions, int)
    head = config.get("head_dim") or hidden // heads
    return positions * int(head)


def _goldens(config: Mapping[str, Any]) -> int:
    """Logits of a few positions, which hardly get smaller by compression."""
    vocabulary = int(config.get("vocab_size", 0))
    return 4 * vocabulary * (12 if vocabulary > 100_000 else 22)


def _memory(names: Sequence[str], tensors: Sequence[_Tensor], config: Mapping[str, Any]) -> int:
    """The most of what the original and the variants take: the widest weight in float32, once more as it is changed, and what is kept."""
    whole = sum(4 * tensor.numbers for tensor in tensors)
    if not _mapped(tensors):
        return LIBRARIES + 2 * whole
    largest = 4 * max((tensor.numbers for tensor in tensors), default=0)
    costs = COSTS if any("hessian" in _plan(name).needs for name in names) else 0
    return LIBRARIES + largest * 3 // 2 + min(whole, KEPT) + min(2 * whole, costs) + _goldens(config)


def _seconds(names: Sequence[str], tensors: Sequence[_Tensor], tokenizer: Path) -> float:
    """Products of all weights with the texts that the original and the variants read, and with each other where errors are made good."""
    read = fitted = IDS
    if tokenizer.is_file():
        known = TextTokenizer(tokenizer.read_bytes())
        read, fitted = (IDS + sum(map(len, token_rows(texts, known, None, None))) for texts in (golden_texts(), calibration_texts()))
    weights = sum(tensor.numbers for tensor in tensors if tensor.is_matrix)
    total = ORIGINAL * read * weights
    for plan in map(_plan, names):
        total += CHECKS * read * weights
        if plan.half is None and set(plan.schemes.values()) != {"fp32"}:
            total += RUNS * fitted * weights
        if "hessian" in plan.needs:
            fitted_ones = [tensor for tensor in tensors if not tensor.is_table and not tensor.is_experts]
            total += sum(tensor.numbers * min(tensor.shape[-1], Hessian.WIDEST) for tensor in fitted_ones)
    return 2 * total / _speed()


def _speed() -> float:
    """Multiplications and additions in float32 a second of all cores: the best of a few products, by time of processors, which other
    programs do not lengthen."""
    one, other = np.ones((256, 1024), np.float32), np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(6):
        begun = time.process_time()
        one @ other
        times.append(time.process_time() - begun)
    return 2 * one.size * len(other) / max(min(times), SHORTEST) * cores()


def _beside(names: Sequence[str], tensors: Sequence[_Tensor], files: Mapping[str, int]) -> int:
    """The most disk that is taken beside the bundle: codes until they are written, one of 8 bits a weight where they are fitted to inputs,
    and float32 of what is in memory as that."""
    whole = sum(4 * tensor.numbers for tensor in tensors)
    taken = [0]
    for name in names:
        plan, written = _plan(name), files.get(f"{name}/{WEIGHTS}", 0)
        codes = sum(tensor.numbers for tensor in tensors if "hessian" in plan.needs and plan.of(tensor.name).needs == "hessian")
        taken.append(0 if plan.half is not None or set(plan.schemes.values()) == {"fp32"} else written + codes)
    return max(taken) + (0 if _mapped(tensors) else whole)


def _mapped(tensors: Sequence[_Tensor]) -> bool:
    """Whether weights are read from their files whenever they are asked for."""
    return all(tensor.width == 2 for tensor in tensors)
