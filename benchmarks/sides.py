"""The sides of a benchmark: ours and every peer, each with its own form of one model, in a process and an environment of its own."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from setup import python_of

from onnxport.compare.protocol.client import Client

HERE = Path(__file__).parent
OURS = "onnxport"
_MARIAN = {OURS: ("int8", "fp32"), "ctranslate2": ("int8", "fp32"), "optimum": ("int8", "fp32"), "transformers": ("fp32",)}
_GPT2 = _MARIAN | {OURS: ("int8", "int8-weight", "int4", "fp32")}
# Variants of ours that a plan makes: the precision that the bundle calls it, and the plan. Each lies in a bundle of its own.
PLANS = {f"int4-{size}": ("int4", {"*": f"int4-blocks{size}"}) for size in (32, 64, 128)}
# The type that a folder's config.json names -> systems -> their precisions. Ours can be any other variant of the bundle too.
SYSTEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "marian": _MARIAN,
    "gpt2": _GPT2,
    "llama": _GPT2
    | {OURS: ("int8", "int8-weight", "int4-32", "int4", "int4-128", "fp32")}
    | {"genai": ("int4-32", "int4-128", "fp32"), "llama_cpp": ("q8_0", "q4_0", "f32")},
    "bert": {OURS: ("int8", "fp32"), "onnxruntime": ("int8", "int8-plain", "fp32"), "optimum": ("int8", "fp32"), "transformers": ("fp32",)},
}
# What a peer's precision is compared with: those of ours that are measured beside it.
_INT8, _INT4 = ("int8", "int8-weight"), ("int4", "int4-32")
RIVALS = {
    "fp32": ("fp32",),
    "f32": ("fp32",),
    "int8": (*_INT8, *_INT4, "int4-128"),
    "int8-plain": ("int8",),
    "q8_0": _INT8,
    "int4-32": _INT4,
    "q4_0": (*_INT4, "int4-128"),
    "int4-128": ("int4-128",),
}
_EXAMPLES = [{"batch_size": size} for size in (8, 16, 32, 64, 128)]
# What the sweep for a side's best way through many texts tries. CTranslate2's guide recommends to try both kinds of batches.
BATCHING: dict[str, list[dict[str, int | str]]] = {name: [*_EXAMPLES] for systems in SYSTEMS.values() for name in systems}
BATCHING["ctranslate2"] += [{"batch_size": size, "batch_type": "tokens"} for size in (512, 1024, 2048, 4096)]


def kind_of(source: Path) -> str:
    """The type that the folder's config.json names. Raises ClickException for one that is not measured here."""
    kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in SYSTEMS:
        raise click.ClickException(f"{source} is of type {kind!r}, expected {', '.join(SYSTEMS)}")
    return str(kind)


def select(kind: str, names: tuple[str, ...]) -> list[str]:
    """The named sides, or all of the kind. Raises ClickException for one that is not known."""
    known = [f"{system} {precision}" for system, precisions in SYSTEMS[kind].items() for precision in precisions]
    for side in names:
        if side not in known and not side.startswith(f"{OURS} "):
            raise click.ClickException(f"{side!r} is no side for {kind}; expected {', '.join(known)}, or another variant of ours")
    return list(names) or known


def prepare(source: Path, models: Path, environments: Path, sides: list[str]) -> None:
    """Converts `source` for every system that has not done so: models/SYSTEM appears whole or not at all."""
    for system in dict.fromkeys(side.split()[0] for side in sides):
        out, part = (models / system).resolve(), (models / f"{system}.part").resolve()
        if system == OURS:
            _bundle(source, models, [side.split()[1] for side in sides if side.startswith(f"{OURS} ")])
            continue
        if out.exists():
            continue
        click.echo(f"{system}: converting {source}", err=True)
        python = python_of(environments, system)
        if not python.exists():
            raise click.ClickException(f"{system}: no environment at {environments / system}; python benchmarks/setup.py {system}")
        command = [str(python.absolute()), "-m", f"peers.{system}", str(source.resolve()), str(part)]
        _run(command, f"{system}: the conversion of {source}", cwd=HERE)
        part.rename(out)


def bundle_of(models: Path, precision: str) -> tuple[Path, str]:
    """Where a variant of ours lies, and what the bundle calls it."""
    if precision in PLANS:
        return models / f"{OURS}-{precision}", PLANS[precision][0]
    return models / OURS, precision


def _bundle(source: Path, models: Path, wanted: list[str]) -> None:
    """Our bundle with the variants that are wanted, all made from its fp32; those that are there stay."""
    out, command = models / OURS, [sys.executable, "-m", "onnxport"]
    if not out.exists():
        click.echo(f"{OURS}: exporting {source}", err=True)
        _run([*command, "export", str(source), "--out", str(out), "--precision", "fp32"], f"{OURS}: the export of {source}")
    for precision in wanted:
        bundle, variant = bundle_of(models, precision)
        part = bundle
        if not bundle.exists():
            part = bundle.with_name(f"{bundle.name}.part")
            shutil.copytree(out, part, dirs_exist_ok=True)
        elif variant in json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["variants"]:
            continue
        click.echo(f"{OURS}: making {precision}", err=True)
        quantize = [*command, "quantize", str(part), "--precision", variant]
        with tempfile.TemporaryDirectory() as folder:
            if precision in PLANS:
                plan = Path(folder) / "plan.json"
                plan.write_text(json.dumps(PLANS[precision][1]), encoding="utf-8")
                quantize += ["--plan", str(plan), "--force"]
            _run(quantize, f"{OURS}: making {precision}")
        if part != bundle:
            part.rename(bundle)


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, stdout=sys.stderr, cwd=cwd)
    if done.returncode:
        raise click.ClickException(f"{what} ended with status {done.returncode}; its last lines tell why")


def start(side: str, models: Path, environments: Path, threads: int) -> Client:
    """The side's process, nothing loaded yet."""
    system, precision = side.split()
    if system == OURS:
        bundle, variant = bundle_of(models, precision)
        spec = {"kind": "bundle", "path": str(bundle.resolve()), "precision": variant, "threads": threads}
        return Client(side, spec, timeout=3600)
    options = {"folder": str((models / system).resolve()), "precision": precision, "threads": threads}
    python = str(python_of(environments, system).absolute())
    return Client(
        side, {"kind": "class", "class": f"peers.{system}:Peer", "options": options}, timeout=3600, paths=[str(HERE)], python=python
    )


def ceiling(scheme: str, threads: int) -> Client:
    """The decoder step built by hand."""
    spec = {"kind": "class", "class": "handbuilt:HandBuilt", "options": {"scheme": scheme, "threads": threads}}
    return Client(f"handbuilt {scheme}", spec, timeout=3600, paths=[str(HERE)])
