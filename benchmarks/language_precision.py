"""What each variant of a language model loses on a text, beside llama.cpp's files of the same weights, all on the same ids.

    python benchmarks/language_precision.py BUNDLE TEXT.txt [--rows 12] [--length 128] [--llama PYTHON --source FOLDER] [--genai FOLDER]

TEXT is plain text; rows are taken from its paragraphs, evenly spaced, each with as many tokens. PYTHON: of an environment with
llama-cpp-python, numpy, gguf and safetensors, in which F32, Q8_0, Q4_K_M and Q4_0 are made of FOLDER by llama.cpp's own quantizer (Llama,
Qwen2 and Gemma 3). --genai: what onnxruntime-genai's builder wrote, such as `genai/int4-32` of benchmarks/run.py, which runs in ONNX
Runtime here; again for more. Prints a Markdown table: bytes of weights, perplexity with its change, the mean divergence (KL) of next tokens
from the float32 ones in nats with the interval of a bootstrap over rows, and the share of equal first choices.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir

from onnxport.graph.logits_positions import every_position
from onnxport.graph.search_graphs import remove_choice
from onnxport.graph.session import opened
from onnxport.quantize.calibration_inputs import prefill_feed
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.tokenizer import TextTokenizer

HERE = Path(__file__).resolve().parent
DRAWS = 1000


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", default=12, help="rows of the text")
@click.option("--length", default=128, help="tokens of a row")
@click.option("--llama", type=click.Path(path_type=Path), help="Python of an environment with llama-cpp-python")
@click.option("--source", type=click.Path(path_type=Path), help="the Hugging Face folder that llama.cpp's files are made of")
@click.option("--genai", multiple=True, type=click.Path(exists=True, path_type=Path), help="a folder of onnxruntime-genai's builder")
def main(bundle: Path, text: Path, rows: int, length: int, llama: Path | None, source: Path | None, genai: tuple[Path, ...]) -> None:
    """Print the table."""
    opened_bundle = Bundle.open(bundle)
    tokenizer = TextTokenizer(opened_bundle.file(next(iter(opened_bundle.tokenizers.values()))))
    ids = _rows(tokenizer, text.read_text(encoding="utf-8"), rows, length)
    print(f"{len(ids)} rows of {length} tokens of {text.name}\n")
    print("| variant | MB of weights | perplexity | change | KL | 95% interval | same first choice |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    expected = list(_of_variant(opened_bundle, "fp32", ids))
    for name, variant in opened_bundle.variants.items():
        size = sum((bundle / file).stat().st_size for file in variant.files)
        _print(name, size, ids, expected, _of_variant(opened_bundle, name, ids))
    for folder in genai:
        size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        _print(f"genai {folder.name}", size, ids, expected, _of_genai(folder, ids))
    if llama is not None and source is not None:
        with tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder:
            np.save(f"{folder}/ids.npy", ids)
            subprocess.run([llama, HERE / "llama_logits.py", source, folder], check=True)
            for kind in ("F32", "Q8_0", "Q4_K_M", "Q4_0"):
                logits = np.load(f"{folder}/{kind}.npy", mmap_mode="r")
                size = Path(f"{folder}/{kind}.gguf").stat().st_size
                _print(f"llama.cpp {kind}", size, ids, expected, (_log_softmax(row) for row in logits))


def _rows(tokenizer: TextTokenizer, text: str, rows: int, length: int) -> np.ndarray:
    """int64 [rows, length]: the beginnings of paragraphs that are long enough, evenly spaced."""
    paragraphs = [part for part in text.split("\n") if len(part) > length] if text.count("\n\n") < 100 else _joined(text, length)
    read = [row for part in paragraphs[: 40 * rows] if len(row := tokenizer.encode([part])[0]) >= length]
    if len(read) < rows:
        raise click.ClickException(f"the text has {len(read)} paragraphs of {length} tokens, expected {rows}")
    return np.array([read[i * len(read) // rows][:length] for i in range(rows)], np.int64)


def _joined(text: str, length: int) -> list[str]:
    """A book: stretches of it, each longer than a row."""
    size = 8 * length
    return [text[i : i + size] for i in range(0, len(text) - size, size)]


def _of_variant(bundle: Bundle, name: str, ids: np.ndarray) -> Iterator[np.ndarray]:
    """log-softmax float32 [length, vocabulary] of each row."""
    model = remove_choice(ir.load(bundle.file(bundle.variants[name].graphs["decoder"])))
    with opened({"decoder": every_position(model)}) as runners:
        for found in runners["decoder"].run((prefill_feed(model, row) for row in ids), ["logits"]):
            yield _log_softmax(found["logits"])


def _of_genai(folder: Path, ids: np.ndarray) -> Iterator[np.ndarray]:
    """The same of the graph that onnxruntime-genai's builder wrote."""
    import onnxruntime  # after onnxport, which turns its telemetry off

    head = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    caches = {value.name: value.shape[1] for value in session.get_inputs() if value.name.startswith("past")}
    for row in ids:
        feed = {name: np.zeros((1, heads, 0, head), np.float32) for name, heads in caches.items()}
        feed |= {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        yield _log_softmax(session.run(["logits"], feed)[0][0])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _print(name: str, size: int, ids: np.ndarray, expected: list[np.ndarray], found: Iterator[np.ndarray]) -> None:
    losses, plain, divergences, same = [], [], [], []
    for row, theirs, ours in zip(ids, expected, found, strict=True):
        places = np.arange(len(row) - 1)
        losses.append(-ours[places, row[1:]].mean(dtype=np.float64))
        plain.append(-theirs[places, row[1:]].mean(dtype=np.float64))
        divergences.append((np.exp(theirs) * (theirs - ours)).sum(-1, dtype=np.float64).mean())
        same.append((theirs.argmax(-1) == ours.argmax(-1)).mean())
    draws = np.random.default_rng(0).integers(0, len(ids), (DRAWS, len(ids)))
    low, high = np.quantile(np.array(divergences)[draws].mean(1), (0.025, 0.975))
    change = np.exp(np.mean(losses) - np.mean(plain)) - 1
    print(
        f"| {name} | {size / 1e6:.1f} | {np.exp(np.mean(losses)):.2f} | {100 * change:+.2f}% | {np.mean(divergences):.4f} "
        f"| {low:.4f} to {high:.4f} | {100 * np.mean(same):.1f}% |",
        flush=True,
    )


if __name__ == "__main__":
    main()
