"""Files of variants and their bytes: graphs, weights by their schemes, and codes that lie in temporary files until they are written."""

from __future__ import annotations

from collections.abc import Sequence

from onnxport.build.estimate.model import SCORES, Model
from onnxport.build.estimate.weights import Tensor
from onnxport.graph.lazy import LEAST
from onnxport.quantize.plan import FP32, Plan, Scheme, scheme
from onnxport.quantize.precisions import made_as
from onnxport.quantize.recipe import SMALL_TABLE, VOCABULARY, spares_vocabulary
from onnxport.quantize.safeguards.sensitive_weights import LARGE
from onnxport.quantize.schemes.blocks.blockwise import block_size
from onnxport.runtime.bundle.variant_names import CPU, split
from onnxport.runtime.sessions import CUDA

WEIGHTS = "weights.bin"
GRAPHS = {  # bytes of a graph file around the layers; of a layer of floats, of one with weights in blocks, of one that multiplies integers
    "causal": {"decoder": (2_500, 3_900, 6_000, 11_000)},
    "seq2seq": {"encoder": (2_300, 6_200, 8_600, 13_600), "decoder": (5_500, 7_200, 10_200, 17_200)},
    "encoder": {"encoder": (2_500, 4_800, 6_400, 12_100)},
}
HEAD = 2_500  # of an encoder's head
CODE = 1.9  # times as many, where a class's own code is traced
EXACT = 0.25  # share of the products in an encoder's `int4` that stays in float32: that of all-MiniLM-L6-v2


def files(names: Sequence[str], model: Model) -> dict[str, int]:
    """Files of variants, and their bytes."""
    found: dict[str, int] = {}
    for name in names:
        same = _shares_weights(name, names)
        plan = own_plan(name, model)
        kernels = 3 if plan.rounds_activations else 2 if rounds(plan) else 1
        end = ".onnx" if same is None else f"@{split(name)[1]}.onnx"
        for role in model.roles:
            sizes = GRAPHS[model.kind][role]
            inside = sizes[kernels] * model.layers(role) * (CODE if model.traced else 1)
            head = HEAD if model.kind == "encoder" and model.name else 0
            found[f"{same or name}/{role}{end}"] = sizes[0] + head + round(inside)
        if same is None:
            found[f"{name}/{WEIGHTS}"] = weights(name, model)
    return found


def _shares_weights(name: str, names: Sequence[str]) -> str | None:
    """The variant whose file of weights a variant for another target has too, where it is made as that one is; see `shared_files`."""
    target = split(name)[1]
    if target == CPU or (target == CUDA.name and made_as(name).plan != Plan({"*": "fp32"})):
        return None
    before = sorted(names, key=lambda one: split(one)[1] != CPU)
    return next((one for one in before[: before.index(name)] if split(one)[1] != CUDA.name and made_as(one) == made_as(name)), None)


def weights(precision: str, model: Model) -> int:
    """Bytes of a variant's weights. Of an encoder's products of 4 bits some stay in float32: how many is found by trying, of a model that
    reads texts."""
    plan = whole_plan(precision, model)
    width = 2 if plan.half is not None else FP32.bits // 8
    exact = EXACT if finds_sensitive(precision, model) else 0.0
    total = width * model.made_positions
    for tensor in model.tensors:
        if model.takes_schemes(tensor):
            found = plan.of(tensor.name)
            size = _bytes(found, *tensor.sizes) * (1 if found.kind == "blocks" else model.copies(tensor))
            size += width * tensor.numbers if model.shifts and model.is_table(tensor) and found != FP32 and plan.half is None else 0
            total += size if model.is_table(tensor) else round((1 - exact) * size + exact * width * tensor.numbers)
        else:
            total += width * tensor.numbers
    return total


def finds_sensitive(precision: str, model: Model) -> bool:
    """Whether weights of 4 bits are tried one by one in an encoder, and those that cost most stay in float32."""
    plan = own_plan(precision, model)
    tried = model.kind == "encoder" and model.tokenizer is not None and not plan.needs and not made_as(precision).by_rule
    return tried and {scheme(name).bits for name in plan.schemes.values()} == {4}


def codes(precision: str, model: Model, fitted: bool) -> int:
    """Bytes of temporary files at least: codes until they are written and, with `fitted`, those that were fitted to inputs."""
    plan, total = whole_plan(precision, model), 0
    for tensor in model.tensors:
        if (found := plan.of(tensor.name)).kind in ("rows", "static", "blocks") and _lies_in_files(tensor, model):
            sizes = [tensor.numbers * found.bits // 8] + [tensor.numbers] * (fitted and found.needs == "hessian")
            total += sum(size for size in sizes if size >= LEAST)
    return total


def codes_of_uses(precision: str, model: Model) -> int:
    """Bytes of temporary files while a variant is checked: each use of a weight has codes of its own until they are written."""
    plan, total = whole_plan(precision, model), 0
    for tensor in model.tensors:
        if (found := plan.of(tensor.name)).kind in ("rows", "static", "blocks") and _lies_in_files(tensor, model):
            total += tensor.numbers * found.bits // 8 * model.uses(tensor) + tensor.numbers * (found.needs == "hessian")
    return total


def _lies_in_files(tensor: Tensor, model: Model) -> bool:
    """Whether codes of a weight lie in files; those of experts lie in memory."""
    return model.takes_schemes(tensor) and not tensor.is_experts


def whole_plan(precision: str, model: Model) -> Plan:
    """What a precision begins with, and what it leaves a language model's vocabulary."""
    plan = own_plan(precision, model)
    if model.kind != "causal" or not spares_vocabulary(plan):
        return plan
    tables = [tensor.name for tensor in model.tensors if model.is_table(tensor)]
    alone = len(tables) > 1 and model.parameters <= LARGE  # of larger models no table is tried in 4 bits
    return Plan(plan.schemes | {name: SMALL_TABLE if alone and not SCORES.search(name) else VOCABULARY for name in tables})


def own_plan(precision: str, model: Model) -> Plan:
    """What a precision begins with, in a language model in one that knows the kit's texts."""
    row = made_as(precision)
    fitted = row.on_texts if model.kind == "causal" else None
    return fitted or row.plan or Plan({"*": "int8-rows"})  # a search's own is among those of its size


def rounds(plan: Plan) -> bool:
    """Whether weights become integers."""
    return plan.half is None and set(plan.schemes.values()) != {FP32.name}


def _bytes(found: Scheme, rows: int, inputs: int) -> int:
    """Of a weight [rows, inputs] with its scales."""
    if found.kind in ("fp32", "half"):
        return found.bits // 8 * rows * inputs
    if found.kind in ("rows", "static"):
        return rows * inputs + 4 * rows
    size = block_size(inputs, found.block)
    blocks = rows * -(-inputs // size)
    zero = 0 if found.symmetric else blocks * found.bits // 8
    return blocks * size * found.bits // 8 + zero + (8 if found.minimum else 2) * blocks  # scales are stored in float16 where they can be
