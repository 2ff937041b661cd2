"""The `doctor` command examines this machine: processor, providers, versions, and known clashes between wheels."""

from typing import Any

from onnxport import __version__, telemetry
from onnxport.cli.cuda_problems import cuda_problems
from onnxport.compare.measure import energy, gpu
from onnxport.compare.measure.machine import describe
from onnxport.runtime.processor import X86
from onnxport.runtime.sessions import CPU, CUDA

PACKAGES = ("torch", "onnx", "onnxscript", "transformers")


def examine() -> dict[str, Any]:
    """Facts and problems of this machine, as plain values."""
    facts = describe(PACKAGES)
    versions = facts["versions"]
    providers: list[str] = []
    problems: list[str] = []
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except ImportError as error:
        problems.append(f"onnxruntime cannot be imported ({error}): pip install onnxport[cpu] or onnxport[gpu]")
    has_cuda = CUDA.provider in providers
    nvidia = gpu.describe()
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install the one that you need"
        )
    elif "onnxruntime-gpu" in versions and not has_cuda:
        problems.append(
            "onnxruntime-gpu is installed but offers no CUDAExecutionProvider: another wheel may have overwritten it; reinstall it"
        )
    elif "onnxruntime-gpu" in versions:
        problems += cuda_problems(onnxruntime, nvidia)
    elif "gpu" in nvidia:
        problems.append(f"{nvidia['gpu']} is here, and no onnxruntime-gpu: uninstall onnxruntime, then pip install onnxport[gpu]")
    notes = []
    if facts["saturates"]:
        notes.append("no VNNI: int8 takes slower kernels here, which add without loss; int8-reduced (weights of 7 bits) is quicker")
    elif facts["saturates"] is False and facts["architecture"] in X86:
        notes.append("VNNI: int8 is exact and at its quickest here; processors without it give the same answers, more slowly")
    if not has_cuda:
        notes.append("no CUDA: bf16 can be neither made nor run here, and variants for CUDA are checked on the CPU")
    if telemetry.state() != "off":
        notes.append(f"ONNX Runtime's telemetry is {telemetry.state()}: unset it, or set it to 1, for silence")
    devices = [CPU.name, CUDA.name] if has_cuda else [CPU.name]
    counters = {device: energy.available(device) for device in devices}
    found = {
        "providers": providers,
        "telemetry": telemetry.state(),
        "energy": counters,
        "gpu": nvidia,
        "problems": problems,
        "notes": notes,
    }
    return {"onnxport": __version__, **facts, **found}


def render(findings: dict[str, Any]) -> str:
    """The findings as text."""
    packages = ", ".join(f"{name} {version}" for name, version in findings["versions"].items() if name not in ("python", "onnxport"))
    lines = [
        f"onnxport {findings['onnxport']}, Python {findings['versions']['python']}, {findings['os']}",
        f"processor  {findings['cpu']}: {findings['cores']} cores, {findings['available_cpus']} granted",
        f"features   {', '.join(findings['features']) or 'unknown'}",
        f"memory     {findings['ram_bytes'] / 2**30:.1f} GiB" if findings["ram_bytes"] else "memory     unknown",
        f"providers  {', '.join(findings['providers']) or 'none'}",
        f"gpu        {_gpu(findings['gpu'])}",
        f"packages   {packages}",
        f"telemetry  {findings['telemetry']}",
    ]
    lines += [f"energy     {device}: {counter}" for device, counter in findings["energy"].items()]
    lines += [f"problem    {text}" for text in findings["problems"]]
    lines += [f"note       {text}" for text in findings["notes"]]
    lines.append("something is wrong: see above" if findings["problems"] else "nothing is wrong")
    return "\n".join(lines)


def _gpu(found: dict[str, Any]) -> str:
    """The GPU with its memory and driver, or why there is none."""
    if "gpu" not in found:
        return f"none: {found['reason']}"
    return f"{found['gpu']}, {found['memory_bytes'] / 2**30:.0f} GiB, driver {found['driver']} for CUDA up to {found['cuda']}"
