"""Are the answers the same? A bundle's greedy answers against the original module's own decoding, sentence by sentence.

    python benchmarks/agreement.py artifacts/en-de test.tsv --limit 500

Each sentence whose answer differs is named with the logit gap: how much the original prefers its own token at the first place that differs.
"""

import sys
from pathlib import Path

import click

from onnxport.runtime import load

EXAMPLE = Path(__file__).parent.parent / "examples" / "en-de"
sys.path.insert(0, str(EXAMPLE))


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--source", type=click.Path(exists=True, path_type=Path), default=EXAMPLE)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--limit", type=int, default=500, show_default=True)
@click.option("--max-new-tokens", type=int, default=64, show_default=True)
def main(bundle: Path, data: Path, source: Path, precision: str, limit: int, max_new_tokens: int) -> None:
    import torch
    from model import greedy
    from model import load as load_original

    net = load_original(source)
    texts = list(dict.fromkeys(line.split("\t")[0] for line in data.read_text(encoding="utf-8").splitlines()))[:limit]
    with load(bundle, precision=precision) as model:
        answers = model.generate(texts, max_new_tokens=max_new_tokens)
        sources = [model.tokenize(text) for text in texts]
    different = 0
    for text, ids, answer in zip(texts, sources, answers, strict=True):
        source_ids = torch.tensor([ids])
        expected = greedy(net, source_ids, max_new_tokens)[0]
        if answer.tokens == expected:
            continue
        different += 1
        end = [net.config["eos_id"]]
        pairs = zip([*expected, *end], [*answer.tokens, *end], strict=False)
        place = next(i for i, (one, other) in enumerate(pairs) if one != other)
        with torch.no_grad():
            target = torch.tensor([[net.config["bos_id"], *expected[:place]]])
            logits = net(source_ids, target)[0, -1]
        theirs, ours = ([*tokens, *end][place] for tokens in (expected, answer.tokens))
        click.echo(f"{text!r}: token {place} differs, logit gap {float(logits[theirs] - logits[ours]):.2g}")
    click.echo(f"{precision}: {len(texts) - different} of {len(texts)} answers are the original's")


if __name__ == "__main__":
    main()
