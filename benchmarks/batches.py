"""Whether an answer depends on its batch: the same texts alone and in ragged batches, and how much of what was computed was padding.

python benchmarks/batches.py artifacts/en-de test.tsv --precision int8 --batch-size 32 --beam 4
"""

from pathlib import Path

import click

from onnxport.compare.data import read_data
from onnxport.runtime import load


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", multiple=True, default=("int8",), show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--beam", type=int, default=1, show_default=True)
@click.option("--limit", type=int, help="Texts, evenly spaced; all by default.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(bundle: Path, data: Path, precision: tuple[str, ...], batch_size: int, beam: int, limit: int | None, threads: int) -> None:
    texts = read_data(data).grouped().limited(limit).inputs
    for name in precision:
        with load(bundle, precision=name, threads=threads) as model:
            alone = model.generate(texts, beam=beam, batch_size=1)
        with load(bundle, precision=name, threads=threads) as model:
            together = model.generate(texts, beam=beam, batch_size=batch_size)
            padding = model.padding
        same = sum(one.tokens == other.tokens for one, other in zip(alone, together, strict=True))
        furthest = max(abs(one.score - other.score) for one, other in zip(alone, together, strict=True))
        share = f"{same} of {len(texts)} answers ({same / len(texts):.2%}) are the same alone and in batches of {batch_size}"
        rest = f"scores differ by at most {furthest:.1e}; {padding:.1%} of the positions computed in batches were padding"
        click.echo(f"{name}, beam {beam}: {share}; {rest}")


if __name__ == "__main__":
    main()
