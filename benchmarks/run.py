"""Ours against its peers on one model: python benchmarks/run.py build/models/random --workload fixed --threads 1,2

SOURCE is a folder of Hugging Face's layout (models.py makes them): Marian, Llama, GPT-2 or BERT. The first run converts it for every side;
peers need their environments (setup.py). Sides run in turn, each in its own process; the table shows medians, and ratios of medians with
the 10th and 90th percentile of the ratios round by round. Writes results.txt, results.json and results.png. Measure on a machine that does
nothing else.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import sides
from rows import Bench
from setup import FOLDER
from table import plot, row_text
from workloads import DEFAULT, WORKLOADS

from onnxport.compare.measure.machine import describe


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--workload", "workloads", type=click.Choice(list(WORKLOADS)), multiple=True, help="By default check and what suits the model."
)
@click.option(
    "--side", "names", multiple=True, help="`SYSTEM PRECISION`, all by default; of ours any variant that `onnxport quantize` makes."
)
@click.option("--threads", default="1,2", show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True, help="A third of them for whole test sets.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="A .tsv of pairs for text and long, a .txt for encoder.")
@click.option("--limit", type=int, help="Texts of it, evenly spaced.")
@click.option("--cpu", is_flag=True, help="Of prefill, seconds of the processor: for one thread beside other work, on Linux.")
@click.option("--environments", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Default: build/bench/NAME; the sides' models lie beneath it.")
def main(
    source: Path,
    workloads: tuple[str, ...],
    names: tuple[str, ...],
    threads: str,
    rounds: int,
    data: Path | None,
    limit: int | None,
    cpu: bool,
    environments: Path,
    out: Path | None,
) -> None:
    kind = sides.kind_of(source)
    selected = sides.select(kind, names)
    out = out or Path("build/bench") / source.name
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    sides.prepare(source, models, environments, selected)
    results: dict[str, Any] = {"source": source.name, "rounds": rounds, "machine": describe(["onnx"]), "about": {}, "rows": []}
    for count in map(int, threads.split(",")):
        with ExitStack() as stack:
            clients = {name: stack.enter_context(sides.start(name, models, environments, count)) for name in selected}
            for name, client in clients.items():
                results["about"][name] = client.load()["about"]
            bench = Bench(clients, models, environments, count, rounds, data, limit, kind, cpu)
            for workload in workloads or DEFAULT[kind]:
                for row in WORKLOADS[workload](bench):
                    click.echo(row_text(row))
                    results["rows"].append(row)
                    write(results, out)


def write(results: dict[str, Any], out: Path) -> None:
    """All three forms; after every row, so that an interrupted run leaves what it measured."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.txt").write_text("\n".join(map(row_text, results["rows"])) + "\n", encoding="utf-8")
    plot(results["rows"], out / "results.png")


if __name__ == "__main__":
    main()
