"""Greedy decoding of the shipped model: the bundle's variants against eager PyTorch, without and with a cache.

    python benchmarks/decode.py artifacts/en-de --threads 2

Each side is a process of its own; runs alternate; ratios of median rates with the 10th and 90th percentile of the ratios run by run.
All sides have the same weights and inputs and make exactly the same number of tokens.
"""

import json
from pathlib import Path
from typing import Any

import click

from onnxport.compare.measure import idle
from onnxport.compare.measure.machine import describe
from onnxport.compare.measure.timing import alternate, ratio, timed_call
from onnxport.compare.protocol.client import Client
from onnxport.runtime import load

HERE = Path(__file__).parent
SENTENCE = "We have to talk about what happened at the station last night because nobody understood why the train left without us."


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--source", type=click.Path(exists=True, path_type=Path), default=HERE.parent / "examples" / "en-de", show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 16), show_default=True)
@click.option("--new-tokens", type=int, default=32, show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the results here as JSON too.")
def main(bundle: Path, source: Path, threads: int, batches: tuple[int, ...], new_tokens: int, rounds: int, out: Path | None) -> None:
    with load(bundle) as model:
        ids = model.tokenize(SENTENCE)
        variants = list(model.bundle.variants)
    specs: dict[str, dict[str, Any]] = {
        name: {"kind": "bundle", "path": str(bundle), "precision": name, "device": "cpu", "threads": threads} for name in variants
    }
    for name, kind in (("pytorch eager", "Eager"), ("pytorch cached", "Cached")):
        specs[name] = {"kind": "class", "class": f"torch_sides:{kind}", "options": {"folder": str(source), "threads": threads}}
    sides = {name: Client(name, spec, paths=[str(HERE)]) for name, spec in specs.items()}
    results: dict[str, Any] = {
        "machine": describe(["torch"]),
        "threads": threads,
        "new_tokens": new_tokens,
        "source_tokens": len(ids),
        "batches": {},
    }
    try:
        for side in sides.values():
            side.load()
        for batch in batches:
            run = timed_call("generate", [[ids] * batch], min_new_tokens=new_tokens, max_new_tokens=new_tokens)
            timed = alternate(sides, run, rounds=rounds, least=rounds, budget_s=0, after=idle.wait)
            click.echo(f"\nbatch {batch}, {len(ids)} source tokens, {new_tokens} new tokens, {threads} threads")
            click.echo(f"{'':<16}{'tokens/s':>10}{'to eager':>20}{'to cached':>20}")
            rows = {}
            for name, side_times in timed.items():
                eager, cached = ratio(side_times, timed["pytorch eager"]), ratio(side_times, timed["pytorch cached"])
                rows[name] = {"rate": side_times.rate, "to_eager": eager, "to_cached": cached}
                shown = [f"{r['ratio']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in (eager, cached)]
                click.echo(f"{name:<16}{side_times.rate:>10.0f}{shown[0]:>20}{shown[1]:>20}")
            results["batches"][str(batch)] = rows
    finally:
        for side in sides.values():
            side.close()
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
