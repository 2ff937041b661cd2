"""Folders as people publish them: tiny ones in the forms of popular models of the Hugging Face hub go through the README's commands.

    python benchmarks/hub_folders.py --out build/hub
    python benchmarks/hub_folders.py --out build/hub --model openai-community/gpt2 --again --keep

hub_folders.json has the config.json, the tokenizer's settings, the special tokens and the list of files of each model, as the hub has them.
Sizes are made small, ids of tokens follow the small vocabulary, weights are random under the names that the published files have, and files
that are not read are there by name. Each folder has a process of its own with a time limit, and a line in OUT/folders.jsonl: a run that is
begun again does what is missing. What a bundle answers is held against transformers' own class or pipeline on the same folder; that of
embeddings and rerankers against sentence-transformers, which has to be installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import hub_tokenizers
import torch
from tiny_folders import SIZES, randomize

DATA = Path(__file__).with_suffix(".json")
KEPT = "vocab_size max_position_embeddings n_positions max_length dropout attention_dropout sliding_window rotary_dim".split()
MORE = {"n_embed": 32, "n_ctx": 1024}
LIMIT = 420  # seconds a folder
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TINY = b"not read"
OUTCOMES = ("right", "refused", "wrong", "failed", "out of time")


@dataclass
class Row:
    """A model's line. outcome: one of OUTCOMES; said: what the commands said, of a refusal its line."""

    model: str
    task: str
    outcome: str = "failed"
    seconds: float = 0.0
    said: str = ""


def read_data() -> dict[str, dict[str, Any]]:
    """What is known of each model's folder."""
    found: dict[str, dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def write_folder(model: dict[str, Any], folder: Path) -> None:
    """A small folder in the form of a published one."""
    folder.mkdir(parents=True)
    ids = hub_tokenizers.write(model["tokenizer"], folder)
    named = {int(i): ids[token] for i, token in model.get("ids", {}).items()}
    spec = model["tokenizer"]
    rows = max(ids.values()) + 1 + spec.get("spare", 0) - spec.get("short", 0)
    config = _small(model, named, rows)
    _json(folder / "config.json", config)
    for name in ("generation_config", "special_tokens_map"):
        if name in model:
            _json(folder / f"{name}.json", _with_extra_ids(_placed(model[name], named)))
    if "tokenizer_config" in model:
        _json(folder / "tokenizer_config.json", _tokenizer_config(model, ids))
    if "chat_template.jinja" in model:
        (folder / "chat_template.jinja").write_text(model["chat_template.jinja"], encoding="utf-8")
    if "sentence_transformers" in model:
        _write_modules(model["sentence_transformers"], folder)
    _write_weights(model, config, folder)
    for name in model["files"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(TINY)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _placed(settings: dict[str, Any], named: dict[int, int]) -> dict[str, Any]:
    """The settings with ids of tokens in the small vocabulary."""

    def place(value: Any) -> Any:
        return [place(one) for one in value] if isinstance(value, list) else named.get(value, value)

    return {key: place(value) if key.endswith(("_token_id", "_words_ids")) else value for key, value in settings.items()}


def _small(model: dict[str, Any], named: dict[int, int], rows: int) -> dict[str, Any]:
    """The config.json in small sizes."""
    config, own = _placed(model["config"], named), model.get("sizes", {})
    small = {**SIZES, **MORE, **own}
    for key, value in config.items():
        if key in own or (key in small and key not in KEPT and isinstance(value, int)):
            config[key] = small[key]
    whole, kv = model["config"].get("num_attention_heads"), model["config"].get("num_key_value_heads")
    if kv is not None:
        config["num_key_value_heads"] = 4 if kv == whole else min(kv, 2)
    for key in ("vocab_size", "decoder_vocab_size"):
        if key in config:
            config[key] = rows
    return config


def _with_extra_ids(settings: dict[str, Any]) -> dict[str, Any]:
    """T5's hundred tokens where hub_folders.json has a word for them."""
    key = "additional_special_tokens"
    return settings | ({key: [f"<extra_id_{i}>" for i in range(100)]} if settings.get(key) == "EXTRA_IDS" else {})


def _tokenizer_config(model: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens that its vocabulary does not have where the published one lists them."""
    found, spec = _with_extra_ids(dict(model["tokenizer_config"])), model["tokenizer"]
    if spec.get("no_decoder"):
        return found
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = [*spec.get("first", ()), *spec.get("last", ()), *spec.get("added", ())]
    if spec["kind"] == "wordpiece":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    listed = [({**flags, **token} if isinstance(token, dict) else {**flags, "content": token}) for token in tokens]
    return {"added_tokens_decoder": {str(ids[token["content"]]): token for token in listed}, **found}


def _write_modules(settings: dict[str, Any], folder: Path) -> None:
    """sentence-transformers' files."""
    modules = []
    for i, kind in enumerate(settings["modules"]):
        path = "" if kind == "Transformer" else f"{i}_{kind}"
        modules.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
    _json(folder / "modules.json", modules)
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **settings["pooling"]})
    for key, name in (("sentence_bert_config", "sentence_bert_config.json"), ("config", "config_sentence_transformers.json")):
        if key in settings:
            _json(folder / name, settings[key])


def build(model: dict[str, Any], config: dict[str, Any]) -> Any:
    """transformers' own class of a folder's config.json with random weights."""
    import transformers

    name = model.get("class", config["architectures"][0])
    cls = getattr(transformers, name)
    values = {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config")}
    if "native" in model:  # the published keys are of another class
        values = {key: config[old] for key, old in model["native"].items()}
    made = cls(cls.config_class.from_dict(values)).eval()
    randomize(made)
    return made


def _write_weights(model: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Random weights in the published form, under the published names."""
    from safetensors.torch import load_file, save_file

    if model.get("class", "") is None:  # code of its own that is not here
        state = {f"encoder.layers.{i}.mixer.Wqkv.weight": torch.randn(96, 32) for i in range(2)}
    else:
        made = build(model, config)
        with_names = folder / "made"
        made.save_pretrained(with_names)
        state = {}
        for path in sorted(with_names.glob("*.safetensors")):
            state |= load_file(path)
        shutil.rmtree(with_names)
    state = _renamed(state, model.get("tensors", {}), config)
    kind = TYPES[config.get("torch_dtype", "bfloat16" if model.get("mxfp4") else "float32")]
    state = {name: (value.to(kind) if value.is_floating_point() else value).contiguous() for name, value in state.items()}
    if model.get("mxfp4"):
        state = _experts_in_mxfp4(state)
        config["quantization_config"] = {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        }
        _json(folder / "config.json", config)
    form = model.get("weights", "model.safetensors")
    if form == "pytorch_model.bin":
        torch.save(state, folder / form)
    elif form == "shards":
        names = sorted(state)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        files = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
        for file, part in zip(files, parts, strict=True):
            save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})
    else:
        save_file({name: value.clone() for name, value in state.items()}, folder / form, {"format": "pt"})


def _renamed(state: dict[str, torch.Tensor], how: dict[str, Any], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by their published names, with those that older versions saved besides."""
    for pattern, new in how.get("rename", ()):
        state = {re.sub(pattern, new, name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not any(re.search(p, name) for p in how.get("drop", ()))}
    size, positions = 32, config.get("max_position_embeddings", config.get("n_positions", 64))
    buffers = {
        "causal": lambda: torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril(),
        "scalar": lambda: torch.tensor(-1e9),
        "vector": lambda: torch.ones(4),
        "positions": lambda: torch.arange(positions)[None],
        "two": lambda: torch.tensor([2.0]),
    }
    extra = {
        "square": lambda: torch.randn(size, size),
        "hidden": lambda: torch.randn(size),
        "pair": lambda: torch.randn(2, size),
        "two": lambda: torch.randn(2),
        "buckets": lambda: torch.randn(config.get("relative_attention_num_buckets", 32), 4),
        "shared": lambda: state["shared.weight"].clone(),
    }
    for name, kind in how.get("buffers", {}).items():
        for layer in range(2 if "{layer}" in name else 1):
            state[name.format(layer=layer)] = buffers[kind]()
    for name, kind in how.get("extra", {}).items():
        state[name] = extra[kind]()
    return state


def _experts_in_mxfp4(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """gpt-oss: weights of experts as two 4-bit codes a byte, and an exponent for each block of 32."""
    found = {}
    for name, value in state.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            found[name] = value
            continue
        experts, inner, outer = value.shape
        found[f"{name}_blocks"] = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        found[f"{name}_scales"] = torch.randint(122, 125, (experts, outer, inner // 32), dtype=torch.uint8)
    return found


def command(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`onnxport` with these arguments."""
    return subprocess.run([sys.executable, "-m", "onnxport", *arguments], input=stdin, capture_output=True, text=True, check=False)


def one(name: str, model: dict[str, Any], work: Path, row: Row) -> None:
    """Makes, exports and asks one folder; fills in `row`."""
    from hub_answers import CHECKS, LINES

    folder, bundle = work / name.rpartition("/")[2], work / "bundle"
    write_folder(model, folder)
    precision = () if model.get("default") else ("--precision", "fp32")
    pickled = model.get("weights") == "pytorch_model.bin"
    began = time.monotonic()
    done = command("export", str(folder), "--out", str(bundle), *precision)
    if pickled:
        if done.returncode != 4 or "--allow-pickle" not in done.stderr:
            row.said = f"a pickle alone: exit {done.returncode}, {_last(done.stderr)}"
            return
        began = time.monotonic()
        done = command("export", str(folder), "--out", str(bundle), "--allow-pickle", *precision)
    row.seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        row.outcome = "refused" if done.returncode in (3, 4) else "failed"
        row.said = f"exit {done.returncode}: {_last(done.stderr)}"
        return
    notes = [line.strip() for line in done.stderr.splitlines() if line.lower().startswith(("note", "warning"))]
    for arguments in (("inspect", str(bundle)), ("verify", str(bundle)), ("run", str(bundle), *LINES[model["task"]].arguments)):
        asked = command(*arguments, stdin=LINES[model["task"]].line if arguments[0] == "run" else None)
        if asked.returncode:
            row.said = f"{arguments[0]}: exit {asked.returncode}: {_last(asked.stderr)}"
            return
    found = CHECKS[model["task"]](model, folder, bundle)
    row.outcome = "wrong" if found else "right"
    row.said = found or "; ".join(notes)


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:600] if lines else ""


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    import onnxruntime
    import tokenizers
    import transformers

    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES}
    versions = f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, onnxruntime {onnxruntime.__version__}"
    sums = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    lines = [f"{len(rows)} folders: {sums} ({versions}, torch {torch.__version__})"]
    lines += ["", "| folder | task | answers | export, s | what was said |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        said = row.said.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.model} | {row.task} | {row.outcome} | {row.seconds:.0f} | {said} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "only", multiple=True, help="This model alone; may be given several times.")
@click.option("--again", is_flag=True, help="Models that have a line already, too.")
@click.option("--keep", is_flag=True, help="Folders and bundles stay, in OUT/NAME.work.")
@click.option("--here", hidden=True)
def main(out: Path, only: tuple[str, ...], again: bool, keep: bool, here: str | None) -> None:
    """Exports and asks each folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
    data = read_data()
    if here is not None:
        row = Row(here, data[here]["task"])
        work = out / f"{here.replace('/', '--')}.work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            one(here, data[here], work, row)
        except Exception as error:
            row.outcome, row.said = "failed", f"{type(error).__name__}: {_last(str(error))}"
            if keep:
                raise
        finally:
            (out / "row.json").write_text(json.dumps(asdict(row)))
        return
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "folders.jsonl"
    found = [Row(**json.loads(line)) for line in lines.read_text().splitlines()] if lines.exists() else []
    rows = {row.model: row for row in found}
    for name in only or data:
        if name in rows and not again:
            continue
        (out / "row.json").unlink(missing_ok=True)
        arguments = [sys.executable, __file__, "--out", str(out), "--here", name, *(["--keep"] if keep else [])]
        try:
            subprocess.run(arguments, timeout=LIMIT, check=False)
            row = Row(**json.loads((out / "row.json").read_text()))
        except subprocess.TimeoutExpired:
            row = Row(name, data[name]["task"], "out of time")
        rows[name] = row
        click.echo(f"{name}: {row.outcome} {row.seconds:.0f} s {row.said[:400]}")
        lines.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows.values()))
        if not keep:
            shutil.rmtree(out / f"{name.replace('/', '--')}.work", ignore_errors=True)
    text = table([rows[name] for name in data if name in rows])
    (out / "folders.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
