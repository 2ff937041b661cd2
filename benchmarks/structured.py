"""What a form of answers costs for each step, both sides in one run.

python benchmarks/structured.py artifacts/smollm2 --precision int8

Two forms are held against plain decoding of the same prompts, greedy and by sampling, alone and in batches. "any text" allows all that the
model would write, so that the answers are the same and all that differs is the masks. "records" is a JSON schema of a long list, whose
answers are others, of as many tokens. A figure is the ratio of seconds a token, the median over rounds whose sides alternate, with the
quartiles. Beside other work take `--threads 1 --cpu`: seconds of the processor, which others disturb less.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnxport.runtime import Generation, Model, load

SUBJECTS = ["a river", "an old mill", "three brothers", "the sea", "a lost key", "winter", "a small town", "two friends"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 40},
        "work": {"enum": ["farmer", "teacher", "baker", "doctor", "none"]},
    },
    "required": ["name", "age", "city", "work"],
    "additionalProperties": False,
}
FORMS: dict[str, Any] = {
    "any text": {"type": "regex", "regex": r"(.|\n)*"},
    "records": {"type": "json_schema", "json_schema": {"type": "array", "items": PERSON, "minItems": 100}},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"beam": 1, "temperature": 0},
    "sampling": {"temperature": 0.7, "seed": 1},
    "top-k, top-p": {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 1},
    "4 beams": {"beam": 4},
}


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--precision", default="int8", show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Of each answer.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--rows", default="1,8", show_default=True, help="Prompts of a batch.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--cpu", is_flag=True, help="Seconds of the processor.")
@click.option("--only", default="", help="The one search to measure: its first letters.")
def main(bundle: Path, precision: str, tokens: int, rounds: int, rows: str, threads: int, cpu: bool, only: str) -> None:
    clock = time.process_time if cpu else time.perf_counter
    with load(bundle, precision=precision, threads=threads) as model:
        begun = time.perf_counter()
        model.generate("a", response_format={"type": "json_object"}, max_new_tokens=1)
        print(f"{bundle.name} {precision}, {threads} threads; tokenizer and first form made ready in {time.perf_counter() - begun:.2f} s")
        for name, search in SEARCHES.items():
            for count in map(int, rows.split(",")):
                if name.startswith(only):
                    for form in FORMS:
                        print(measure(model, name, search, count, form, tokens, rounds, clock))


def measure(
    model: Model, name: str, search: dict[str, Any], count: int, form: str, tokens: int, rounds: int, clock: Callable[[], float]
) -> str:
    texts = [f"Write a long story about {subject}." for subject in (SUBJECTS * count)[:count]]
    prompts: Any = texts
    if model.bundle.chat is not None:
        prompts = [model.prompt([{"role": "user", "content": text}]) for text in texts]
    sides: dict[str, dict[str, Any]] = {"plain": {}, "formed": {"response_format": FORMS[form]}}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, list[Generation]] = {}
    for round_ in range(-1, rounds):
        for side in sorted(sides, reverse=bool(round_ % 2)):
            started = clock()
            answers[side] = model.generate(prompts, max_new_tokens=tokens, batch_size=count, **search, **sides[side])
            if round_ >= 0:  # the first warms up
                seconds[side].append((clock() - started) / max(len(one.tokens) for one in answers[side]))
    ratios = [formed / plain for formed, plain in zip(seconds["formed"], seconds["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    same = sum(one.tokens == other.tokens for one, other in zip(answers["plain"], answers["formed"], strict=True))
    step = statistics.median(seconds["plain"])
    return (
        f"{name}, {count} rows, {form}: {middle:.3f} times a plain step of {step * 1e3:.2f} ms (quartiles {low:.3f} to {high:.3f}); "
        f"{same} of {count} answers the same"
    )


if __name__ == "__main__":
    main()
