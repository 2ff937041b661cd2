"""BLEU and chrF of a bundle's variants on a test set, each row with its own single reference (sacreBLEU, 13a).

python benchmarks/quality.py artifacts/en-de test.tsv --beam 4
"""

from pathlib import Path

import click
import sacrebleu

from onnxport.runtime import load


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", "precisions", multiple=True, default=("fp32", "fp16", "int8"), show_default=True)
@click.option("--beam", type=int, default=1, show_default=True)
@click.option("--max-new-tokens", type=int, default=64, show_default=True)
def main(bundle: Path, data: Path, precisions: tuple[str, ...], beam: int, max_new_tokens: int) -> None:
    pairs = [line.split("\t") for line in data.read_text(encoding="utf-8").splitlines()]
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    first: list[str] = []
    for precision in precisions:
        with load(bundle, precision=precision) as model:
            answers = [str(result.text) for result in model.generate(sources, beam=beam, max_new_tokens=max_new_tokens)]
        first = first or answers
        same = sum(one == other for one, other in zip(first, answers, strict=True)) / len(answers)
        bleu, chrf = sacrebleu.corpus_bleu(answers, [references]).score, sacrebleu.corpus_chrf(answers, [references]).score
        click.echo(f"{precision}: BLEU {bleu:.2f}, chrF {chrf:.2f}, {same:.1%} of the answers are {precisions[0]}'s")


if __name__ == "__main__":
    main()
