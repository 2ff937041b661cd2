"""Exports of models that are large beside the machine's memory: what a command takes, in anonymous memory, disk and time.

    python benchmarks/large_models.py make /usr/share/common-licenses/GPL-3 --out build/large/llama-1b --size 1b
    python benchmarks/large_models.py measure --folder build/large/llama-1b -- onnxport export build/large/llama-1b --out build/large/out
    python benchmarks/large_models.py table build/large/llama-1b --out build/large/made --genai PYTHON --llama PYTHON SCRIPT

`make` writes a Llama in bfloat16, tensor by tensor, of weights that 4 bits hold (see shapes.py). `measure` runs any command, and samples
the anonymous memory of all its processes: pages of mapped files, which the system takes back whenever it likes, do not count. `table` does
so for our exports and those of other tools, one after the other; what one wrote is deleted before the next one begins.

Each PYTHON is an interpreter with that tool: onnxruntime-genai (benchmarks/setup.py), optimum-onnx, or gguf, torch and transformers, with
SCRIPT the path of llama.cpp's convert_hf_to_gguf.py, which knows published tokenizers only: `make --tokenizer FOLDER` takes one of those.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

SIZES = {  # hidden, inner, layers, heads, key and value heads, vocabulary
    "0.1b": (768, 2048, 12, 12, 4, 49_152),
    "0.3b": (1024, 4096, 16, 16, 8, 64_000),
    "0.5b": (896, 4864, 24, 14, 2, 151_936),  # Qwen2.5-0.5B, without its biases
    "1b": (2048, 8192, 16, 32, 8, 128_256),  # Llama-3.2-1B
    "7b": (3584, 18944, 28, 28, 4, 152_064),  # Qwen2.5-7B, without its biases
}
LEARNED = 2000  # entries of the vocabulary
SHARD = 2 * 2**30
BITS = 4  # of a step behind its first one: bfloat16, which has 7, holds seven times the step


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--size", type=click.Choice(sorted(SIZES)), required=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--gain", type=float, default=2.0, show_default=True)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), help="A folder whose tokenizer is taken.")
def make(text: Path, out: Path, size: str, seed: int, gain: float, tokenizer: Path | None) -> None:
    """A Llama with random weights in shards, and a tokenizer trained on the lines of TEXT."""
    import torch  # not for `measure`, which should take no time from what it measures
    from safetensors.torch import save_file
    from shapes import BOS, EOS, byte_level, read_lines, save_tokenizer

    hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[size]
    torch.manual_seed(seed)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    save_tokenizer(byte_level(read_lines(text), min(vocabulary, LEARNED)), out, settings | {"model_max_length": 2048})
    if tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, out / name)
    _fill(out / "tokenizer.json", vocabulary)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "tie_word_embeddings": size != "7b", "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    places: dict[str, str] = {}
    shard: dict[str, Any] = {}
    shards = 0
    shapes = dict(_shapes(hidden, inner, layers, hidden // heads * kv_heads, vocabulary, size == "7b"))
    for name, shape in [*shapes.items(), (None, None)]:
        if shard and (name is None or sum(t.nbytes for t in shard.values()) >= SHARD):
            shards += 1
            file = f"model-{shards:05}.safetensors"
            save_file(shard, out / file, {"format": "pt"})
            places |= dict.fromkeys(shard, file)
            shard = {}
        if name is not None:
            shard[name] = _weight(name, shape, gain).to(torch.bfloat16)
    if shards == 1:
        (out / "model-00001.safetensors").rename(out / "model.safetensors")
    else:
        index = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": places}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))


def _fill(path: Path, vocabulary: int) -> None:
    """Gives a tokenizer entries that no text leads to; as added tokens they would be looked for in every text."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    entries = tokenizer["model"]["vocab"]
    entries |= {f"<unused_{i}>": i for i in range(len(entries), vocabulary)}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _shapes(hidden: int, inner: int, layers: int, kv: int, vocabulary: int, head: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        path = f"model.layers.{i}"
        yield f"{path}.input_layernorm.weight", (hidden,)
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            yield f"{path}.{name}.weight", (rows, columns)
        yield f"{path}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if head:
        yield "lm_head.weight", (vocabulary, hidden)


def _weight(name: str, shape: tuple[int, ...], gain: float) -> Any:
    """As shapes.spread makes them, on steps that bfloat16 holds."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape)
    layer = re.search(r"\.(\d+)\.", name)
    factor = gain if re.search(r"\.(q|k|gate|up)_proj\.", name) else 1.0
    factor *= 0.25 if layer is not None and int(layer[1]) > 1 and re.search(r"\.(o|down)_proj\.", name) else 1.0
    step = 0.02 / 4.32 * factor  # 4.32: the deviation of -7 to 7
    unit = 2.0 ** (math.floor(math.log2(step)) - BITS)
    step = round(step / unit) * unit
    weight = torch.randint(-7, 8, shape).float() * step
    if name == "model.embed_tokens.weight":
        weight[:2] = 0
    return weight


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="A checkpoint that memory is told in copies of.")
@click.option("--every", type=float, default=0.5, show_default=True, help="Seconds between samples.")
@click.argument("command", nargs=-1, required=True)
def measure(folder: Path | None, every: float, command: tuple[str, ...]) -> None:
    """What COMMAND takes, and the most after each line that it writes to its standard error."""
    size = _stored(folder) if folder else None
    found = _watch(command, every)
    in_copies = f", {found.memory / size:.2f} times the folder" if size else ""
    click.echo(
        f"rc {found.code}, {found.seconds:.1f} s, {found.stages[-1].end:.1f} s of processors, "
        f"{found.memory / 2**20:.0f} MiB of anonymous memory{in_copies}"
    )
    click.echo("| up to the line | MiB at most | times the folder | seconds of processors |\n| --- | ---: | ---: | ---: |")
    before = 0.0
    for stage, after in zip(found.stages, [*found.stages[1:], Stage("the end")], strict=True):
        times = f"{stage.memory / size:.2f}" if size else ""
        click.echo(f"| {after.line} | {stage.memory / 2**20:.0f} | {times} | {stage.end - before:.1f} |")
        before = stage.end


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for what is written; what is in it goes.")
@click.option("--genai", help="An interpreter with onnxruntime-genai.")
@click.option("--optimum", help="An interpreter with optimum-onnx.")
@click.option("--llama", nargs=2, help="An interpreter, and the path of convert_hf_to_gguf.py.")
@click.option("--precisions", default="int8 int4-rtn int4", show_default=True, help="Of our exports, one after the other.")
@click.option("--every", type=float, default=0.5, show_default=True, help="Seconds between samples.")
def table(
    folders: tuple[Path, ...],
    out: Path,
    genai: str | None,
    optimum: str | None,
    llama: tuple[str, str] | None,
    precisions: str,
    every: float,
) -> None:
    """What exports of FOLDERS take, by ours and by other tools."""
    click.echo(
        "| folder | GB | what | minutes | processors | memory | times the folder | written |\n"
        + "| --- | ---: | --- "
        + "| ---: " * 5
        + "|"
    )
    for folder in folders:
        size = _stored(folder)
        for name, command in _exports(folder, out, genai, optimum, llama, precisions.split()):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            found = _watch(command, every, silent=True)
            written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            result = (
                f"{found.seconds / 60:.2f} | {found.stages[-1].end:.0f} s | {found.memory / 2**20:,.0f} MiB | {found.memory / size:.2f} | "
                f"{written / 1e9:.2f} GB"
            )
            failed = f"failed ({found.code}) after " if found.code else ""
            click.echo(f"| {folder.name} | {size / 1e9:.2f} | {name} | {failed}{result} |")
            if found.code:
                click.echo("\n".join(stage.line for stage in found.stages[-3:]), err=True)
    shutil.rmtree(out, ignore_errors=True)


def _exports(
    folder: Path, out: Path, genai: str | None, optimum: str | None, llama: tuple[str, str] | None, precisions: list[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and commands."""
    for precision in precisions:
        yield (
            f"onnxport {precision}",
            (str(Path(sys.executable).with_name("onnxport")), "export", str(folder), "--out", str(out / "made"), "--precision", precision),
        )
    if genai:
        made = ("-m", str(folder), "-o", str(out / "made"), "-p", "int4", "-e", "cpu", "-c", str(out / "cache"))
        yield "onnxruntime-genai int4", (genai, "-m", "onnxruntime_genai.models.builder", *made)
    if optimum:
        cli = str(Path(optimum).with_name("optimum-cli"))
        yield "optimum float32", (cli, "export", "onnx", "-m", str(folder), "--task", "text-generation-with-past", str(out / "made"))
    if llama:
        for kind in ("q8_0", "bf16"):
            yield f"llama.cpp's converter {kind}", (*llama, str(folder), "--outfile", str(out / "made.gguf"), "--outtype", kind)


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@dataclass
class Watched:
    """A command that has ended. seconds: by the clock. memory: the most anonymous memory of all its processes, in bytes."""

    code: int
    seconds: float
    stages: list["Stage"]

    @property
    def memory(self) -> int:
        return max(stage.memory for stage in self.stages)


def _watch(command: tuple[str, ...], every: float, silent: bool = False) -> Watched:
    """Runs a command, and samples what it takes. silent: its standard output is nobody's."""
    begun, stages = time.perf_counter(), [Stage("start")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL if silent else None, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        reader = threading.Thread(target=_read_stages, args=(process.stderr, stages))
        reader.start()
        while process.poll() is None:
            pids, stage = tree(process.pid), stages[-1]
            stage.memory = max(stage.memory, sum(map(anonymous, pids)))
            stage.end = sum(map(processor_time, pids)) or stage.end
            time.sleep(every)
        reader.join()
    return Watched(process.returncode, time.perf_counter() - begun, stages)


def _read_stages(lines: IO[str], stages: list["Stage"]) -> None:
    for line in lines:
        stages.append(Stage(line.strip(), end=stages[-1].end))


@dataclass
class Stage:
    """What a command took behind a line that it wrote, up to the next one. end: seconds of processors by then, from the start."""

    line: str
    memory: int = 0
    end: float = 0.0


def tree(pid: int) -> list[int]:
    """A process and those below it."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(below for child in children for below in tree(child))]


def anonymous(pid: int) -> int:
    """Bytes of a process that are no pages of files."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(r"^Anonymous: +(\d+)", text, re.MULTILINE)[1])


def processor_time(pid: int) -> float:
    """Seconds that a process has had of the processors."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
