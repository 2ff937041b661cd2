"""The exporter that transformers has of its own beside ours: the same tiny folders, to files that ONNX Runtime loads.

    python benchmarks/exporters.py --out build/exporters
    python benchmarks/exporters.py --out build/exporters --type llama --rounds 1

Each export has a process of its own, forked from one that has imported everything; the two sides take turns at being first. Seconds are
those of the processor (one thread), from the folder to the files: other work on the machine changes them little. They are not for the same
thing: ours also holds every graph against the class at several shapes, theirs exports alone. transformers' exporter is asked for what its
documents show for ONNX Runtime: dynamic shapes, fusions for the CPU, and for models that generate `export_for_generation`.

Both are then asked for the same: tokens behind prompts of two lengths in one batch, from a cache, in batches that were not traced;
encoders for hidden states of padded batches. The difference from the class's own answers is over the largest of these.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from census import CONTEXT, KERNELS, KINDS, WRITTEN_OUT, answer_of
from tiny_folders import tiny_folder

LIMIT = 1200  # seconds an export
OURS, THEIRS = "onnxport", "transformers"
# type → kind of the census, class
TYPES = {
    "llama": ("decoders", "LlamaForCausalLM"),
    "qwen3": ("decoders", "Qwen3ForCausalLM"),
    "gemma3_text": ("decoders", "Gemma3ForCausalLM"),
    "gpt_neox": ("decoders", "GPTNeoXForCausalLM"),
    "phi3": ("decoders", "Phi3ForCausalLM"),
    "mixtral": ("decoders", "MixtralForCausalLM"),
    "falcon": ("decoders", "FalconForCausalLM"),
    "bert": ("encoders", "BertModel"),
    "modernbert": ("encoders", "ModernBertModel"),
    "t5": ("seq2seq", "T5ForConditionalGeneration"),
}


@dataclass
class Found:
    """One export. seconds: of the processor, None where it failed, which `failed` says. graphs, bytes, nodes: files of graphs, and their
    sizes without weights; fused, left: attentions that became kernels, and those written out; difference: of answers, None where
    `unanswered` says why there are none."""

    seconds: float | None = None
    failed: str = ""
    graphs: int = 0
    bytes: int = 0
    nodes: int = 0
    fused: int = 0
    left: int = 0
    difference: float | None = None
    unanswered: str = ""


@dataclass
class Pair:
    """A type's exports by side, a list each."""

    type: str
    sides: dict[str, list[Found]] = field(default_factory=lambda: {OURS: [], THEIRS: []})


def _said(error: BaseException) -> str:
    from onnxport.errors import one_line

    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error, 160)}"


def _processor() -> float:
    """Seconds of the processor so far, of this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def weigh(files: Iterable[Path], found: Found) -> None:
    """Fills in what is in the graphs."""
    import onnx

    for file in files:
        model = onnx.load(file, load_external_data=False)
        found.graphs += 1
        found.nodes += len(model.graph.node)
        kinds = Counter(node.op_type for node in model.graph.node)
        found.fused += sum(kinds[name] for name in KERNELS)
        found.left += sum(kinds[name] for name in WRITTEN_OUT)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        found.bytes += model.ByteSize()


def ours(kind: str, cls: str, folder: Path, out: Path, found: Found) -> None:
    """A bundle of the folder in fp32, then its answers."""
    from onnxport.build import build

    began = _processor()
    build(str(folder), out, precision=("fp32",))
    found.seconds = _processor() - began
    weigh(sorted(out.rglob("*.onnx")), found)
    found.difference = KINDS[kind].difference(cls, folder, out)


def theirs(kind: str, cls: str, folder: Path, out: Path, found: Found) -> None:
    """transformers' export of the folder, then its answers."""
    import torch
    import transformers
    from transformers.exporters import OnnxConfig, OnnxExporter

    began = _processor()
    model = getattr(transformers, cls).from_pretrained(folder).eval()
    example = _padded(model, (7, 4), left=kind == "decoders")
    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    export = OnnxExporter().export if kind == "encoders" else OnnxExporter().export_for_generation
    exported = export(model, example, config)
    exported.save_pretrained(out)
    found.seconds = _processor() - began
    weigh(sorted(out.rglob("*.onnx")), found)
    try:
        with torch.no_grad():
            found.difference = {"decoders": _decoded, "encoders": _encoded, "seq2seq": _translated}[kind](model, exported)
    except Exception as error:  # whatever its graphs or their runner raise
        found.unanswered = _said(error)


def _padded(model: Any, lengths: tuple[int, ...], left: bool) -> dict[str, Any]:
    """Ids and mask of rows of these lengths, padded on the left, as language models have it, or on the right."""
    import torch

    places = torch.arange(max(lengths))
    mask = (places.flip(0) if left else places) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 80, mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    padding = getattr(model.config, "pad_token_id", None) or 0
    return {"input_ids": ids.masked_fill(~mask, padding), "attention_mask": mask.long()}


def _run(exported: Any, name: str, **values: Any) -> Any:
    """A graph of theirs with those of the values that it takes."""
    runner = exported.runners[name]
    return runner(**{key: value for key, value in values.items() if key in runner.metadata.kwargs})


def _encoded(model: Any, exported: Any) -> float:
    batch = _padded(model, (9, 13, 2), left=False)
    expected, got = (run(**batch).last_hidden_state[batch["attention_mask"] > 0] for run in (model, exported))
    return float((got - expected).abs().max() / expected.abs().max())


def _decoded(model: Any, exported: Any, steps: int = 4) -> float:
    import torch
    from transformers import DynamicCache

    batch, worst = _padded(model, (9, 13, 2), left=True), 0.0
    ids, mask, cache = batch["input_ids"], batch["attention_mask"], DynamicCache(config=model.config)
    new, name = ids, "prefill"
    for _ in range(steps):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        found = _run(exported, name, input_ids=new, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True)
        logits = found.logits[:, -1]
        expected = torch.stack([model(input_ids=row[real > 0][None]).logits[0, -1] for row, real in zip(ids, mask, strict=True)])
        worst = max(worst, float((logits - expected).abs().max() / expected.abs().max()))
        new, name, cache = expected.argmax(-1, keepdim=True), "decode", found.cache
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return worst


def _translated(model: Any, exported: Any, steps: int = 4) -> float:
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    batch, worst = _padded(model, (9, 13, 2), left=False), 0.0
    memory = model.get_encoder()(**batch)  # what theirs leaves to PyTorch
    targets = torch.full((3, 1), model.config.decoder_start_token_id)
    cache, name = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)), "prefill"
    for _ in range(steps):
        new = targets[:, -1:]
        found = _run(
            exported,
            name,
            encoder_outputs=memory,
            attention_mask=batch["attention_mask"],
            decoder_input_ids=new,
            cache=cache,
            use_cache=True,
        )
        expected = model(**batch, decoder_input_ids=targets).logits[:, -1]
        worst = max(worst, float((found.logits[:, -1] - expected).abs().max() / expected.abs().max()))
        targets, name, cache = torch.cat([targets, expected.argmax(-1, keepdim=True)], 1), "decode", found.cache
    return worst


def run_child(side: str, model_type: str, folder: Path, out: Path, sender: Any) -> None:
    """The process of one export: sends its Found as a dict."""
    kind, cls = TYPES[model_type]
    found = Found()
    try:
        {OURS: ours, THEIRS: theirs}[side](kind, cls, folder, out, found)
    except Exception as error:  # whatever the exporter raises
        if found.seconds is None:
            found.failed = _said(error)
        else:
            found.unanswered = _said(error)
    sender.send(asdict(found))


def export(side: str, model_type: str, folder: Path, out: Path) -> Found:
    """One export in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        found = answer_of(run_child, side, model_type, folder, out, limit=LIMIT)
        return Found(failed=f"not done after {LIMIT} s") if found is None else Found(**found)
    except ChildProcessError as error:
        return Found(failed=str(error))


def table(pairs: list[Pair]) -> str:
    """The pairs as Markdown."""
    lines = ["| type | side | processor, s | graphs | nodes | bytes without weights | attention fused | answers |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for pair in pairs:
        for side, runs in pair.sides.items():
            last = runs[-1]
            if last.failed:
                lines.append(f"| {pair.type} | {side} | failed: {_cell(last.failed)} | | | | | |")
                continue
            seconds = [run.seconds for run in runs if run.seconds is not None]
            times = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
            fused = f"{last.fused} of {last.fused + last.left}"
            answers = f"none: {_cell(last.unanswered)}" if last.difference is None else f"{last.difference:.0e} off"
            lines.append(f"| {pair.type} | {side} | {times} | {last.graphs} | {last.nodes} | {last.bytes:,} | {fused} | {answers} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--type", "only", type=click.Choice(list(TYPES)), multiple=True, help="This type alone; may be given several times.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Exports of each side.")
def main(out: Path, only: tuple[str, ...], rounds: int) -> None:
    """Exports each type by both sides, and prints a table."""
    out.mkdir(parents=True, exist_ok=True)
    CONTEXT.set_forkserver_preload(["census_warm", "transformers.exporters.exporter_onnx"])
    pairs = [Pair(name) for name in (only or TYPES)]
    for number in range(rounds):
        for pair in pairs:
            folder = out / "folders" / pair.type
            if not folder.exists():
                tiny_folder(pair.type, TYPES[pair.type][1], folder)
            for side in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                found = export(side, pair.type, folder, out / "exported")
                pair.sides[side].append(found)
                click.echo(f"{pair.type}, {side}: {json.dumps(asdict(found))}", err=True)
        (out / "exporters.md").write_text(table(pairs))
    click.echo(table(pairs))


if __name__ == "__main__":
    main()
