"""All that a GPU is to show (docs/gpu.md): what matters most first, against a clock, each section's results stored when it is done.

    bash benchmarks/gpu_check.sh build/gpu --prepare          # once: models and bundles, which need no GPU; goes on where it stopped
    bash benchmarks/gpu_check.sh build/gpu                    # all sections, in nine minutes at most
    bash benchmarks/gpu_check.sh build/gpu --only parity,peers
    bash benchmarks/gpu_check.sh build/gpu-small --device cpu # the whole script at small size, where there is no GPU

Results are in OUT/results.json, which a later run adds to. A section that would not end in time is left out, and says so. A section that
fails says why, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from onnxport.compare.measure import energy, gpu, machine
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import for_device
from onnxport.runtime.sessions import DEVICES, Sessions
from onnxport.runtime.verify import broken, replay

HERE = Path(__file__).parent
KINDS = ("seq2seq", "causal", "encoder")  # at small size; on a GPU all of support.target_bundles
LARGE = "large"
PROMPT = 32  # ids


@dataclass(frozen=True)
class Check:
    """What sections run on. small: the script itself is checked, with tiny models and few rounds."""

    out: Path
    device: str
    deadline: float
    small: bool

    @property
    def batches(self) -> tuple[int, ...]:
        """Rows that decode together."""
        return (1, 3) if self.small else (1, 16, 64, 256)

    @property
    def new(self) -> int:
        """Tokens of an answer."""
        return 4 if self.small else 128

    @property
    def rounds(self) -> int:
        """Timed runs, of which the median counts."""
        return 2 if self.small else 3

    @property
    def large(self) -> Path:
        """The bundle that is timed."""
        return self.out / ("causal" if self.small else LARGE)

    @property
    def source(self) -> Path:
        """The folder that it was made of."""
        return self.out / "sources" / self.large.name

    @property
    def bundles(self) -> list[Path]:
        """One of each kind of model."""
        return sorted(path.parent for path in self.out.glob("*/bundle.json") if path.parent.name != LARGE)

    def precisions(self, bundle: Path) -> list[str]:
        """Those that a bundle has for this device."""
        names = Bundle.open(bundle).variants
        return [name for name in ("fp32", "fp16", "int8", "int4") if for_device(name, self.device, names) in names]

    def load(self, bundle: Path, precision: str) -> Model:
        """On the device that is checked."""
        return load(bundle, precision=precision, device=self.device)

    def prompts(self, rows: int, length: int = PROMPT) -> list[list[int]]:
        """The same random ids each time, which every model has."""
        ids = np.random.default_rng(rows).integers(3, 30, (rows, min(length, 16) if self.small else length))
        return [row.tolist() for row in ids]


Section = Callable[[Check], dict[str, Any]]
SECTIONS: dict[str, tuple[int, Section]] = {}  # name → seconds that it may take on a GPU, and what it does; by priority


def section(seconds: int) -> Callable[[Section], Section]:
    """Enters a function in SECTIONS."""

    def enter(function: Section) -> Section:
        SECTIONS[function.__name__] = (seconds, function)
        return function

    return enter


@section(15)
def provider(check: Check) -> dict[str, Any]:
    """A session runs where it is asked to, and a device that is hidden ends the command with exit code 5."""
    path = check.out / "seq2seq"
    with check.load(path, "fp32") as model:
        assert model.engine is not None
        found = model.engine.decoder.get_providers()[0]
    hidden = subprocess.run(
        [sys.executable, "-m", "onnxport", "run", str(path), "--device", "cuda", "a"],
        capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert found == DEVICES[check.device].provider, found
    assert hidden.returncode == 5, hidden.stderr
    return {"provider": found, "without_a_device": hidden.stderr.strip().splitlines()[-1], "gpu": gpu.describe()}


@section(90)
def parity(check: Check) -> dict[str, Any]:
    """Golden answers of every kind of model and precision, within their bounds."""
    found: dict[str, Any] = {}
    for path in check.bundles:
        bundle = Bundle.open(path)
        for precision in check.precisions(path):
            name = for_device(precision, check.device, bundle.variants)
            measured = replay(bundle, name, check.device)
            problems = broken(bundle.variants[name].parity["bounds"], measured)
            found[f"{path.name}/{name}"] = {"relative_error": measured["relative_error"], "broken": problems}
    assert found and not any(one["broken"] for one in found.values()), found
    return found


@section(20)
def copies(check: Check) -> dict[str, Any]:
    """Copies between host and device in steps of the decoder, by ONNX Runtime's own profile."""

    class Profiled(Sessions):
        def options(self, steady: bool = True, threads: int | None = None) -> Any:
            options = super().options(steady, threads)
            options.enable_profiling, options.profile_file_prefix = True, str(check.out / "profile")
            return options

    found: dict[str, Any] = {}
    bundle = Bundle.open(check.large)
    for precision in check.precisions(check.large):
        name = for_device(precision, check.device, bundle.variants)
        with Model(bundle, name, Profiled.on(check.device)) as model:
            assert model.engine is not None
            model.generate(check.prompts(1), beam=1, min_new_tokens=check.new, max_new_tokens=check.new)
            profile = Path(model.engine.decoder.end_profiling())
        events = json.loads(profile.read_text())
        nodes = [event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})]
        copied = sum(node["op_name"].startswith("Memcpy") for node in nodes)
        elsewhere = sorted({node["op_name"] for node in nodes if node.get("provider") != DEVICES[check.device].provider})
        found[name] = {"copies": copied, "nodes": len(nodes), "not_on_the_device": elsewhere}
        for file in check.out.glob("profile*.json"):
            file.unlink()
    assert not any(one["copies"] for one in found.values()), found
    return found


@section(100)
def greedy(check: Check) -> dict[str, Any]:
    """Tokens/s at several batches, and at batch 1 the share of what the memory's bandwidth allows."""
    bandwidth, found = _bandwidth(check), dict[str, Any]()
    found["bandwidth_gb_s"] = bandwidth / 1e9
    for precision in [name for name in check.precisions(check.large) if name != "fp32"]:
        with check.load(check.large, precision) as model:
            variant = model.bundle.variants[model.precision]
            weights = max(model.bundle.files[file].bytes for file in variant.files)
            rates = {
                batch: _rate(check, lambda batch=batch, model=model: _generate(check, model, batch), batch * check.new)
                for batch in check.batches
            }
        found[variant.name] = {"tokens_s": rates, "weight_bytes": weights, "share_of_floor": rates[1] * weights / bandwidth}
    return found


@section(150)
def peers(check: Check) -> dict[str, Any]:
    """Batch 1 of fp16 beside transformers' generate, torch.compile and onnxruntime-genai, in turn."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(check.prompts(1), device=check.device)
    dtype = torch.float32 if check.small else torch.float16
    theirs = AutoModelForCausalLM.from_pretrained(check.source, dtype=dtype).to(check.device).eval()
    options = {"do_sample": False, "min_new_tokens": check.new, "max_new_tokens": check.new, "pad_token_id": 0}

    def eager() -> None:
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)

    sides: dict[str, Callable[[], None]] = {"transformers": eager}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(check.load(check.large, "fp16"))
        sides["onnxport"] = lambda: _generate(check, ours, 1)
        missing = {}
        if importlib.util.find_spec("onnxruntime_genai") is None:
            missing["genai"] = "onnxruntime-genai is not installed"
        else:
            sides["genai"] = _genai(check)
        found = {name: _rate(check, side, check.new) for name, side in sides.items()}
        compiled = torch.compile(theirs.forward, backend="eager" if check.small else "inductor", dynamic=False)
        theirs.forward, options["cache_implementation"] = compiled, "static"
        found["torch.compile"] = _rate(check, eager, check.new)
    return {"tokens_s": found, "ours_over": {name: found["onnxport"] / rate for name, rate in found.items()}} | missing


@section(40)
def agreement(check: Check) -> dict[str, Any]:
    """The share of greedy answers of fp16 that are fp32's, over every kind of model that generates."""
    same = total = 0
    for path in check.bundles:
        if Bundle.open(path).generation is None:
            continue
        prompts = check.prompts(8 if check.small else 64, 6)
        answers = []
        for precision in ("fp32", "fp16"):
            with check.load(path, precision) as model:
                answers.append([answer.tokens for answer in model.generate(prompts, beam=1, max_new_tokens=16)])
        same, total = same + sum(a == b for a, b in zip(*answers, strict=True)), total + len(prompts)
    return {"equal_answers": same / total, "answers": total}


@section(30)
def beams(check: Check) -> dict[str, Any]:
    """Tokens/s with 4 beams."""
    with check.load(check.large, "fp16") as model:
        return {
            f"batch {batch}": _rate(check, lambda batch=batch: _generate(check, model, batch, beam=4), batch * check.new)
            for batch in check.batches[:2]
        }


@section(30)
def prefill(check: Check) -> dict[str, Any]:
    """Tokens of a prompt that are read in a second."""
    length = 16 if check.small else 1536
    found = {}
    for precision in [name for name in check.precisions(check.large) if name != "fp32"]:
        with check.load(check.large, precision) as model:
            prompt = check.prompts(1, length)
            rate = _rate(check, lambda model=model, prompt=prompt: model.generate(prompt, beam=1, max_new_tokens=1), len(prompt[0]))
        found[precision] = rate
    return found


@section(30)
def encoder(check: Check) -> dict[str, Any]:
    """Texts/s of an encoder."""
    texts = ["a b c d e f g h"] * (8 if check.small else 256)
    found = {}
    for precision in check.precisions(check.out / "encoder"):
        with check.load(check.out / "encoder", precision) as model:
            found[precision] = _rate(check, lambda model=model: model.classify(texts, batch_size=len(texts)), len(texts))
    return found


@section(30)
def joules(check: Check) -> dict[str, Any]:
    """Joules a token at batch 1 and the largest batch, where the device counts them."""
    meter = energy.meter(check.device)
    if isinstance(meter, str):
        return {"not measurable": meter}
    found = {}
    with check.load(check.large, "fp16") as model:
        for batch in (check.batches[0], check.batches[-1]):
            _generate(check, model, batch)
            before = meter.joules()
            _generate(check, model, batch)
            found[f"batch {batch}"] = (meter.joules() - before) / (batch * check.new)
    return {"joules_a_token": found, "source": meter.source}


def _generate(check: Check, model: Model, batch: int, **options: Any) -> None:
    model.generate(check.prompts(batch), min_new_tokens=check.new, max_new_tokens=check.new, batch_size=batch, **({"beam": 1} | options))


def _rate(check: Check, call: Callable[[], object], units: int) -> float:
    """Units a second, the median of some runs after a first one."""
    call()
    times = []
    for _ in range(check.rounds):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return units / statistics.median(times)


def _bandwidth(check: Check) -> float:
    """Bytes a second that the device's memory reads, by copies, which read and write as much."""
    size = 1 << (26 if check.small else 32)
    if check.device == "cpu":
        one, other = np.ones(size, np.uint8), np.empty(size, np.uint8)
        return _rate(check, lambda: np.copyto(other, one), 2 * size)
    import torch

    def copied() -> float:
        source, target = (torch.zeros(size, dtype=torch.uint8, device=check.device) for _ in range(2))

        def copy() -> None:
            target.copy_(source)
            torch.cuda.synchronize()

        return _rate(check, copy, 2 * size)

    rate = copied()
    torch.cuda.empty_cache()
    return rate


def _genai(check: Check) -> Callable[[], None]:
    """onnxruntime-genai's own fp16 model of the same folder."""
    import onnxruntime_genai as genai

    folder = check.out / "genai"
    if not (folder / "genai_config.json").is_file():
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(check.source.resolve()), "-o", str(folder.resolve())]
        precision = ["-e", check.device, "-p", "fp32" if check.small else "fp16", "-c", str(folder / "cache")]
        subprocess.run([*build, *precision], check=True, cwd=folder.parent)
    model = genai.Model(str(folder))

    def generate() -> None:
        params = genai.GeneratorParams(model)
        prompt = check.prompts(1)
        length = len(prompt[0]) + check.new
        params.set_search_options(batch_size=1, do_sample=False, min_length=length, max_length=length)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()

    return generate


def prepare(check: Check) -> None:
    """Models and bundles that are not there yet."""
    from support import target_bundles

    targets = ("cpu",) if check.device == "cpu" else ("cpu", "cuda")
    for kind in KINDS if check.small else target_bundles.KINDS:
        if not (check.out / kind / "bundle.json").is_file():
            print(f"prepare {kind}", flush=True)
            target_bundles.write(kind, check.out, targets)
    if check.small or (check.large / "bundle.json").is_file():
        return
    if not (check.source / "config.json").is_file():
        make = [str(HERE / "large_models.py"), "make", str(HERE.parent / "README.md"), "--out", str(check.source), "--size", "1b"]
        subprocess.run([sys.executable, *make], check=True)
    export = ["-m", "onnxport", "export", str(check.source), "--out", str(check.large), "--target", check.device]
    subprocess.run([sys.executable, *export, "--precision", "fp16,int8,int4", "--resume"], check=True)


def _left_out(check: Check, seconds: int) -> str | None:
    left = check.deadline - time.monotonic()
    return f"left out: {left:.0f} s are left, and it may take {seconds}" if not check.small and left < seconds else None


def run(check: Check, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections' results, as each is done."""
    for name in names:
        seconds, function = SECTIONS[name]
        if reason := _left_out(check, seconds):
            yield name, {"state": reason}
            continue
        before = time.monotonic()
        try:
            found = {"state": "done", "found": function(check)}
        except Exception as error:  # whatever it is, the other sections go on
            found = {"state": f"failed: {type(error).__name__}: {str(error)[:500]}", "trace": traceback.format_exc()[-3000:]}
        yield name, found | {"seconds": round(time.monotonic() - before, 1), "at": datetime.now(UTC).isoformat(timespec="seconds")}


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(sorted(DEVICES)), default="cuda", show_default=True)
@click.option("--prepare", "prepares", is_flag=True, help="Make models and bundles, and measure nothing.")
@click.option("--only", default="", help="Sections, between commas; default: all.")
@click.option("--small", is_flag=True, help="At small size, as with --device cpu.")
@click.option("--minutes", type=float, default=8.5, show_default=True)
def main(out: Path, device: str, prepares: bool, only: str, small: bool, minutes: float) -> None:
    check = Check(out.resolve(), device, time.monotonic() + 60 * minutes, small or device == "cpu")
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in only.split(",") if name] or list(SECTIONS)
    if unknown := sorted(set(names) - set(SECTIONS)):
        raise click.UsageError(f"{unknown[0]} is no section, expected some of {', '.join(SECTIONS)}")
    if prepares or check.device == "cpu":
        (check.out / "sources").mkdir(exist_ok=True)
        prepare(check)
        if prepares:
            return
    if not check.bundles or not (check.large / "bundle.json").is_file():
        raise click.UsageError(f"{out} has no bundles: run it with --prepare first")
    place = check.out / "results.json"
    results = json.loads(place.read_text()) if place.is_file() else {}
    results |= {"device": device, "machine": machine.describe(("torch", "transformers")), "gpu": gpu.describe()}
    failed = False
    for name, found in run(check, sorted(names, key=list(SECTIONS).index)):
        results.setdefault("sections", {})[name] = found
        place.write_text(json.dumps(results, indent=1, default=float))
        failed |= found["state"].startswith("failed")
        print(f"{name:10} {found['state'][:200]}  {json.dumps(found.get('found', {}), default=float)[:400]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
