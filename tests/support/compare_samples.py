"""A report's content as `compare` makes it, and a bundle's folder without a model in it."""

import json
from typing import Any

from tokenizers import Tokenizer, models

from onnxport.compare.report.report import Report
from onnxport.compare.verdict import recommend, verdicts
from support.speed_samples import against_each_other

TOKENIZER = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).to_str()
SIZES = {"fp32": 30_000_000, "fp16": 15_000_000, "int8": 8_000_000}


def metrics(speedup: float = 1.0, size: int = 30_000_000, **more: Any) -> dict[str, Any]:
    return {
        "device": "cpu",
        "size_bytes": size,
        "size_ratio": size / 30_000_000,
        "load_ms": 12.0,
        "first_output_ms": 300.0,
        "latency_ms": {"p50": 40 / speedup, "p90": 50 / speedup, "p99": 60 / speedup},
        "latency_samples": 100,
        "throughput": 100 * speedup,
        "throughput_by_batch": {"1": 100 * speedup, "8": 400 * speedup},
        "speedup": speedup,
        "peak_rss_bytes": 100_000_000,
        "max_abs_diff": 1e-5,
        "agreement": 1.0,
    } | more


def translated(drop: float = 0.0, **more: Any) -> dict[str, Any]:
    return metrics(bleu=37.3 - drop, bleu_drop=drop, chrf=60.0, **more)


def report(**more: Any) -> Report:
    variants = {
        "fp32": translated(),
        "fp16": translated(speedup=0.5, size=15_000_000, agreement=0.99),
        "int8": translated(
            0.1, speedup=2.1, size=8_000_000, agreement=0.965, first_difference={"count": 3, "median": 4, "histogram": {"2": 1, "11": 2}}
        ),
    }
    variants = against_each_other(variants)
    chosen = recommend(variants, "fp32")
    fields: dict[str, Any] = {
        "bundle": "en-de",
        "task": "translation",
        "reference": "fp32",
        "variants": variants,
        "gates": [],
        "machine": {"cpu": "A CPU", "features": ["avx2"], "cores": 2, "ram_bytes": 2**34, "os": "Linux", "versions": {"python": "3.11"}},
        "verdict": verdicts(variants, "fp32"),
        "recommended": chosen.name,
        "recommended_for": chosen.why,
        "data": {"name": "test.tsv", "kind": "pairs", "count": 200, "built_in": False},
        "method": {
            "threads": 2,
            "batches": [1, 8],
            "unit": "tokens/s",
            "launches": 3,
            "processes": "apart",
            "size_bytes": "all",
            "first_output_ms": "from the start",
            "signatures": {"bleu": "tok:13a"},
        },
        "examples": {
            "fp16": [],
            "int8": [
                {
                    "index": 4,
                    "input": "Hi <b>",
                    "expected": "Hallo",
                    "reference": "Hallo du",
                    "variant": "Hallo | Sie",
                    "first_difference": 1,
                }
            ],
        },
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Report(**(fields | more))


def write_bundle(
    folder: Any, task: str = "translation", tokenizer: bool = True, variants: Any = ("fp32", "fp16", "int8"), golden: str | None = None
) -> Any:
    """A bundle.json that can be opened, and its files, none of which can be run."""
    names = [f"{name}/decoder.onnx" for name in variants] + (["tokenizer.json"] if tokenizer else []) + ([golden] if golden else [])
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(TOKENIZER if name == "tokenizer.json" else "x")
    generation = {
        "kind": "seq2seq",
        "layers": 1,
        "kv_heads": 1,
        "head_size": 8,
        "vocab_size": 9,
        "max_length": 64,
        "decoder_start_id": 1,
        "eos_id": 2,
    }
    manifest = {
        "format": 1,
        "name": "sample",
        "task": task,
        "family": "none",
        "default": next(iter(variants)),
        "generation": None if task in ("embedding", "tensor") else generation,
        "files": {name: {"sha256": "0" * 64, "bytes": (folder / name).stat().st_size} for name in names},
        "variants": {
            name: {
                "files": [f"{name}/decoder.onnx"],
                "bytes": SIZES.get(name, 1),
                "graphs": {"decoder": f"{name}/decoder.onnx"},
                "target": "cpu",
                "plan": {},
                "fusions": {},
                "parity": {},
            }
            for name in variants
        },
        "search": {},
        "golden": golden,
        "tokenizers": {"source": "tokenizer.json", "target": "tokenizer.json"} if tokenizer else {},
        "provenance": {},
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder
