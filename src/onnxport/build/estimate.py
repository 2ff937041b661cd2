"""What an export would write and take, from config.json and the headers of the weights alone: `onnxport export --dry-run`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxport.build.request import BuildOptions, variants
from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.extras import require
from onnxport.files import MOST, read_regular
from onnxport.quantize.plan import Plan, Scheme
from onnxport.quantize.precisions import DEFAULT, made_as
from onnxport.quantize.recipe import VOCABULARY, spares_vocabulary
from onnxport.quantize.schemes.apply import FEWEST_INPUTS
from onnxport.quantize.schemes.blockwise import block_size
from onnxport.runtime.bundle.variant_names import CPU

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
LIBRARIES = 700 * 2**20  # bytes that the packages of an export take by themselves
GRAPH = 600  # bytes of a node in a graph file
NODES = 22  # of a layer
TOKENS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


@dataclass(frozen=True)
class Estimate:
    """files: path in the bundle → bytes. parameters: of the source. memory: the most anonymous memory. disk: the most at any time."""

    files: dict[str, int]
    parameters: int
    memory: int
    disk: int

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
    tensors = list(_headers(folder))
    if config.get("tie_word_embeddings") and any(tensor.name.endswith("embed_tokens.weight") for tensor in tensors):
        tensors = [tensor for tensor in tensors if not tensor.name.endswith("lm_head.weight")]
    found = {"golden.npz": _goldens(config)}
    if (tokenizer := folder / "tokenizer.json").is_file():
        found["tokenizer.json"] = tokenizer.stat().st_size
    for name in names:
        found[f"{name}/decoder.onnx"] = GRAPH * NODES * int(config.get("num_hidden_layers", 0))
        found[f"{name}/weights.bin"] = _variant(name, tensors, config)
    whole = sum(4 * tensor.numbers for tensor in tensors)
    return Estimate(found, sum(tensor.numbers for tensor in tensors), _memory(names, tensors, found), whole + sum(found.values()))


def _headers(folder: Path) -> Iterator[_Tensor]:
    """Name, shape and bytes of a number of every tensor, none of which is read."""
    require("safetensors", "export")
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(absent)}; copy them into the folder")
    for file in files:
        try:
            with safe_open(folder / file, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    if part.get_dtype() in FLOATS:
                        yield _Tensor(name, tuple(part.get_shape()), FLOATS[part.get_dtype()])
        except Exception as error:  # a damaged header can make any kind
            raise CheckpointError(f"{folder / file} is not a whole safetensors file: {one_line(error)}; copy it again") from error


def _variant(precision: str, tensors: Sequence[_Tensor], config: Mapping[str, Any]) -> int:
    row = made_as(precision)
    plan = row.plan or Plan({"*": "int8-rows"})  # a search's own is among those of its size
    if row.on_texts is not None:
        tables = [tensor.name for tensor in tensors if tensor.is_table] if spares_vocabulary(row.on_texts) else []
        plan = Plan(row.on_texts.schemes | dict.fromkeys(tables, VOCABULARY))
    half = 2 if plan.half is not None else 4
    total = 0
    for tensor in tensors:
        matrix = len(tensor.shape) == 2 and tensor.shape[1] >= FEWEST_INPUTS
        total += _bytes(plan.of(tensor.name), *tensor.shape) if matrix else half * tensor.numbers
    return total + half * _rotations(config)


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


def _memory(names: Sequence[str], tensors: Sequence[_Tensor], files: Mapping[str, int]) -> int:
    """The most of: the widest weight in float32 beside a layer of them, and what a variant holds until it is written."""
    held = all(tensor.width == 2 for tensor in tensors)
    whole = sum(4 * tensor.numbers for tensor in tensors)
    largest = 4 * max((tensor.numbers for tensor in tensors), default=0)
    original = 2 * largest if held else 2 * whole
    variants = max((files[f"{name}/weights.bin"] for name in names if name not in ("fp32", "fp16")), default=0)
    return LIBRARIES + max(original, 2 * variants)
