"""The sides of a benchmark: ours and every peer, each with its own form of one model, in a process and an environment of its own."""

import subprocess
import sys
from pathlib import Path

import click
from setup import python_of

from onnxport.compare.client import Client

HERE = Path(__file__).parent
OURS = "onnxport"
SYSTEMS = {OURS: ("int8", "fp32"), "ctranslate2": ("int8", "fp32"), "optimum": ("int8", "fp32"), "transformers": ("fp32",)}
SIDES = [f"{system} {precision}" for system, precisions in SYSTEMS.items() for precision in precisions]
_EXAMPLES = [{"batch_size": size} for size in (8, 16, 32, 64, 128)]
# What the sweep for a side's best way through many texts tries. CTranslate2's guide recommends to try both kinds of batches.
BATCHING: dict[str, list[dict[str, int | str]]] = {name: [*_EXAMPLES] for name in SYSTEMS}
BATCHING["ctranslate2"] += [{"batch_size": size, "batch_type": "tokens"} for size in (512, 1024, 2048, 4096)]


def prepare(source: Path, models: Path, environments: Path, sides: list[str]) -> None:
    """Converts `source` for every system that has not done so: models/SYSTEM appears whole or not at all."""
    for system in dict.fromkeys(side.split()[0] for side in sides):
        out, part = (models / system).resolve(), (models / f"{system}.part").resolve()
        if out.exists():
            continue
        click.echo(f"{system}: converting {source}", err=True)
        if system == OURS:
            command = [sys.executable, "-m", "onnxport", "export", str(source), "--out", str(part), "--force"]
            done = subprocess.run([*command, "--precision", ",".join(reversed(SYSTEMS[OURS]))], stdout=sys.stderr)
        else:
            python = python_of(environments, system)
            if not python.exists():
                raise click.ClickException(f"{system}: no environment at {environments / system}; python benchmarks/setup.py {system}")
            command = [str(python.absolute()), "-m", f"peers.{system}", str(source.resolve()), str(part)]
            done = subprocess.run(command, cwd=HERE, stdout=sys.stderr)
        if done.returncode:
            raise click.ClickException(f"{system}: the conversion of {source} ended with status {done.returncode}; its last lines tell why")
        part.rename(out)


def start(side: str, models: Path, environments: Path, threads: int) -> Client:
    """The side's process, nothing loaded yet."""
    system, precision = side.split()
    folder = str((models / system).resolve())
    if system == OURS:
        spec = {"kind": "bundle", "path": folder, "precision": precision, "threads": threads}
        return Client(side, spec, timeout=3600)
    options = {"folder": folder, "precision": precision, "threads": threads}
    python = str(python_of(environments, system).absolute())
    return Client(
        side, {"kind": "class", "class": f"peers.{system}:Peer", "options": options}, timeout=3600, paths=[str(HERE)], python=python
    )


def ceiling(scheme: str, threads: int) -> Client:
    """The decoder step built by hand."""
    spec = {"kind": "class", "class": "handbuilt:HandBuilt", "options": {"scheme": scheme, "threads": threads}}
    return Client(f"handbuilt {scheme}", spec, timeout=3600, paths=[str(HERE)])
