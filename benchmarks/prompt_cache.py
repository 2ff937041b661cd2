"""A chat of ten turns with kept prompts: time to the first token of its last turn, against a prompt of that turn's new tokens alone.

python benchmarks/prompt_cache.py artifacts/smollm2

Both sides run in turn in one process, and every answer is compared with that of the model without a prompt cache.
"""

import random
import statistics
import time
from pathlib import Path

import click

from onnxport.runtime import Model, load

WORDS = """bread music winter garden engine letter silver harbour question teacher mountain window paper summer bridge doctor river forest
camera kitchen""".split()


def first_token(model: Model, ids: list[int]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, to one new token."""
    clock, processor = time.perf_counter(), time.process_time()
    model.generate([ids], beam=1, max_new_tokens=1)
    return time.perf_counter() - clock, time.process_time() - processor


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default=None)
@click.option("--turns", type=int, default=10, show_default=True)
@click.option("--tokens", type=int, default=32, show_default=True, help="New tokens of an answer.")
@click.option("--words", type=int, default=25, show_default=True, help="Of a question.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(bundle: Path, precision: str | None, turns: int, tokens: int, words: int, threads: int, rounds: int) -> None:
    over_new, over_new_cpu, over_whole, same, total = [], [], [], 0, 0
    with (
        load(bundle, precision=precision, threads=threads, prefix_cache_mb=256) as keeping,
        load(bundle, precision=precision, threads=threads) as plain,
    ):
        for seed in range(rounds + 1):
            rng, messages = random.Random(seed), []
            for turn in range(turns):
                messages.append({"role": "user", "content": f"Tell me about {' '.join(rng.choices(WORDS, k=words))}."})
                ids = keeping.prompt(messages)
                if turn == turns - 1:
                    break
                found, expected = (model.generate([ids], beam=1, max_new_tokens=tokens)[0] for model in (keeping, plain))
                same, total = same + (found.tokens == expected.tokens), total + 1
                messages.append({"role": "assistant", "content": found.text})
            asked = keeping.generate([ids[:-1]], beam=1, max_new_tokens=1)[0]  # tells how much is known; what it reads is known then, too
            new = len(ids) - asked.cached_tokens
            other = [rng.randrange(1000, 9000) for _ in range(new)]
            # The new tokens of the last turn, in another wording each time, so that every measurement reads them.
            begun = ids[: asked.cached_tokens]
            turns_new = [rng.randrange(1000, 9000) for _ in range(new)]
            last, alone, whole = (
                first_token(keeping, [*begun, *turns_new]),
                first_token(keeping, other),
                first_token(plain, [*begun, *turns_new]),
            )
            if seed:  # the first warms up
                over_new.append(last[0] / alone[0])
                over_new_cpu.append(last[1] / alone[1])
                over_whole.append(whole[0] / last[0])
                click.echo(
                    f"round {seed}: {len(ids)} tokens, {asked.cached_tokens} known, {new} new: {1000 * last[0]:.0f} ms; "
                    f"the new ones alone {1000 * alone[0]:.0f} ms; all without a prompt cache {1000 * whole[0]:.0f} ms"
                )
    click.echo(f"first token of turn {turns} over a prompt of its new tokens: {statistics.median(over_new):.2f}")
    click.echo(f"the same by CPU time: {statistics.median(over_new_cpu):.2f}")
    click.echo(f"without a prompt cache over with it: {statistics.median(over_whole):.2f}")
    click.echo(f"{same} of {total} answers are the same")


if __name__ == "__main__":
    main()
