"""The lm-evaluation-harness over bundles of a language model, beside its own `hf` over the folder that they were made of.

    make build/lm-eval/ready
    build/lm-eval/bin/python benchmarks/lm_eval_beside.py FOLDER BUNDLE... [--chat]

The tasks are those of examples/lm-eval, which need no download. It prints a row of a Markdown table for each task and each variant for the
CPU: the metrics, and how far the samples' log-likelihoods, greedy flags and written answers are from those of `hf` in float32. With --chat
prompts go through the model's chat template.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from onnxport.integrations.lm_eval import OnnxportLM
from onnxport.runtime.bundle.reader import Bundle

TASKS = Path(__file__).resolve().parent.parent / "examples" / "lm-eval"
NAMES = ["capitals", "capitals_read", "capitals_written"]
BATCH = 8
THREADS = 2


def evaluated(model: Any, chat: bool) -> dict[str, Any]:
    """The harness's results and samples of all tasks. chat: prompts go through the chat template."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=NAMES, task_manager=manager, bootstrap_iters=0, apply_chat_template=chat)
    assert found is not None
    return found


def metrics(found: dict[str, Any], task: str) -> str:
    """The metrics of a task as the harness names them, such as `acc 0.9722`."""
    values = {name.partition(",")[0]: value for name, value in found["results"][task].items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if "stderr" not in name)


def answers(found: dict[str, Any], task: str) -> list[Any]:
    """The model's answers to every request of a task: (log-likelihood, greedy), log-likelihoods, or texts."""
    return [answer for sample in found["samples"][task] for (answer,) in sample["resps"]]


def beside(ours: list[Any], theirs: list[Any]) -> str:
    """How far answers are from those of `hf`."""
    pairs = list(zip(ours, theirs, strict=True))
    if isinstance(theirs[0], str):
        return f"{sum(one == other for one, other in pairs)} of {len(pairs)} answers the same"
    if not isinstance(theirs[0], tuple):
        return f"largest difference {max(abs(one - other) for one, other in pairs):.2g} of {len(pairs)}"
    flags = sum(one[1] == other[1] for one, other in pairs)
    return f"largest difference {max(abs(one[0] - other[0]) for one, other in pairs):.2g} of {len(pairs)}, {flags} greedy flags the same"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="The lm-evaluation-harness over bundles, beside its own hf.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--chat", action="store_true")
    given = parser.parse_args()
    folder, bundles = given.folder.resolve(), [bundle.resolve() for bundle in given.bundles]
    os.chdir(TASKS)  # the tasks name their data by paths from here
    theirs = evaluated(HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=BATCH), given.chat)
    print("| task | variant | metrics | beside `hf` |\n| --- | --- | --- | --- |")
    for task in NAMES:
        print(f"| {task} | `hf`, float32 | {metrics(theirs, task)} | |")
    for bundle in bundles:
        for variant in (name for name in Bundle.open(bundle).variants if "@" not in name):
            model = OnnxportLM(bundle, precision=variant, batch_size=BATCH, threads=THREADS)
            found = evaluated(model, given.chat)
            model.model.close()
            for task in NAMES:
                row = metrics(found, task), beside(answers(found, task), answers(theirs, task))
                print(f"| {task} | {variant} | {row[0]} | {row[1]} |", flush=True)


if __name__ == "__main__":
    main()
