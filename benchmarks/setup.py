"""An environment for each peer, so that no two have to agree on a version: python benchmarks/setup.py [PEER]...

Every peer is a requirements file and a module in benchmarks/peers. onnxport goes in without what it depends on: a worker needs its
protocol only. On a machine without a GPU: --torch-index https://download.pytorch.org/whl/cpu
"""

import os
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
PEERS = sorted(path.stem for path in (HERE / "peers").glob("*.txt"))
FOLDER = Path("build/peers")
BUILDING = {"llama_cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}}  # environment variables for what is built from source: minutes


def python_of(folder: Path, peer: str) -> Path:
    """The peer's interpreter, whether or not it is there yet."""
    return folder / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@click.command(help=__doc__)
@click.argument("peers", nargs=-1, type=click.Choice(PEERS))
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--torch-index", help="A package index that is searched for torch too.")
def main(peers: tuple[str, ...], folder: Path, torch_index: str | None) -> None:
    for peer in peers or PEERS:
        click.echo(f"{peer}: {folder / peer}", err=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        pip = [str(python_of(folder, peer)), "-m", "pip", "install", "--quiet"]
        index = ["--extra-index-url", torch_index] if torch_index else []
        subprocess.run(
            [*pip, *index, "--requirement", str(HERE / "peers" / f"{peer}.txt")], check=True, env=os.environ | BUILDING.get(peer, {})
        )
        subprocess.run([*pip, "--no-deps", "--editable", str(HERE.parent)], check=True)


if __name__ == "__main__":
    main()
