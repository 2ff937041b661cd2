"""Language models over long inputs: memory and speed of prefill, each length in a process of its own.

    python benchmarks/models.py mistral BOOK.txt --out build/models/mistral
    onnxport export build/models/mistral --out artifacts/mistral --precision fp32,int8
    python benchmarks/long_context.py artifacts/mistral BOOK.txt

With a sliding window in every layer the cache holds no more than the window: memory must not grow with the input.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import click
from shapes import read_lines

NEW = 32


def measure(bundle: str, text: str, length: int, precision: str, threads: int) -> dict[str, float]:
    """The first `length` tokens of a text and NEW more, in this process."""
    from onnxport.compare.protocol.worker import peak_rss_bytes, rss_bytes
    from onnxport.runtime import load

    model = load(bundle, precision=precision, threads=threads)
    ids = model._source().encode([text])[0][:length]
    model.generate([ids[:8]], beam=1, temperature=0.0, max_new_tokens=2)
    before = rss_bytes() or 0
    started = time.perf_counter()
    model.generate([ids], beam=1, temperature=0.0, min_new_tokens=NEW, max_new_tokens=NEW)
    seconds = time.perf_counter() - started
    return {
        "tokens": len(ids),
        "tokens_per_s": (len(ids) + NEW) / seconds,
        "loaded_mb": before / 1e6,
        "peak_mb": peak_rss_bytes() / 1e6,
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default="1000,5000,20000", show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--one", type=int, hidden=True)
def main(bundle: str, text: Path, tokens: str, precision: str, threads: int, one: int | None) -> None:
    """Peak memory and tokens read a second of BUNDLE over the first tokens of TEXT."""
    if one is not None:
        print(json.dumps(measure(bundle, "\n".join(read_lines(text)), one, precision, threads)))
        return
    for length in map(int, tokens.split(",")):
        command = [sys.executable, __file__, bundle, str(text), "--one", str(length), "--precision", precision, "--threads", str(threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print("  ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
