"""An export that is killed again and again, and goes on with --resume: python benchmarks/resume.py FOLDER [--precision int4] [--kills 3]

The export runs whole once. Then it runs again into another place: it and all that it started get SIGKILL at evenly spaced moments
of that time, and it is started again with `--resume`. Prints the seconds of the whole run and of each part, and whether the bundle that
came of the parts is the same, byte for byte. Needs room for two bundles, under --out.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

CHUNK = 1 << 20


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="int4")
@click.option("--kills", default=3)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/resume"))
def main(folder: Path, precision: str, kills: int, out: Path) -> None:
    """Print one line for each part, and the outcome."""
    if out.exists():
        raise SystemExit(f"{out} is there already; remove it, or name another place with --out")
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "onnxport", "export", str(folder), "--precision", precision, "--quiet", "--resume", "--out"]
    whole, code = _run([*command, str(out / "whole")], None)
    if code:
        raise SystemExit(code)
    click.echo(f"whole: {whole:.0f} s")
    spent = 0.0
    for number in range(kills + 1):
        limit = None if number == kills else whole / (kills + 1)
        seconds, code = _run([*command, str(out / "parts")], limit)
        spent += seconds
        kept = sum(file.stat().st_size for file in (out / ".parts.work").rglob("*") if file.is_file()) / 1e6
        click.echo(f"part {number + 1}: {seconds:.0f} s, status {code}, {kept:.0f} MB kept")
        if code >= 0:
            break
        if (out / "parts").exists():
            raise SystemExit("a bundle stands where none was finished")
    same = code == 0 and _hashes(out / "whole") == _hashes(out / "parts")
    left = sorted(path.name for path in out.iterdir() if path.name not in ("whole", "parts"))
    click.echo(f"parts together: {spent:.0f} s, {spent / whole:.2f} of the whole; the same bytes: {same}; left beside: {left or 'nothing'}")
    if not same or left:
        raise SystemExit(1)


def _run(command: list[str], limit: float | None) -> tuple[float, int]:
    """Seconds and status of a command, which is killed after `limit` seconds."""
    begun = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return time.monotonic() - begun, process.returncode


def _hashes(bundle: Path) -> dict[str, str]:
    """SHA-256 of each file of a bundle."""
    found = {}
    for file in sorted(bundle.rglob("*")):
        if file.is_file():
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
            found[str(file.relative_to(bundle))] = digest.hexdigest()
    return found


if __name__ == "__main__":
    main()
