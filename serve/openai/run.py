"""/v1/run: any task that reads text, with the options of the runtime's own methods and the answers of `onnxport run --json`."""

from __future__ import annotations

from onnxport.serve.errors import refused
from onnxport.serve.fields import Fields, named
from onnxport.serve.models import Served
from onnxport.serve.sending import Reply, to_json
from onnxport.serve.service import Call
from onnxport.serve.tasks import TASKS, Task


async def run(call: Call) -> Reply:
    """Answer a request: {"model": ..., "inputs": [...], and options}."""
    fields = call.fields()
    served = call.model(fields.required("model", str))
    task = task_of(served)
    given = fields.required("inputs", str, list, dict)
    items = given if isinstance(given, list) else [given]
    if not items:
        raise refused("inputs is empty, expected one or more", "inputs")
    inputs = [_input(one, f"inputs[{place}]", task) for place, one in enumerate(items)]
    options = {name: value for name, kinds in task.options.items() if (value := fields.take(name, *kinds)) is not None}
    fields.finish()
    new = len(inputs) * served.new_tokens(options.get("max_new_tokens"))
    await call.charge(served, [text for one in inputs for text in one], "inputs", new)
    return to_json({"model": served.name, "results": await task.answers(served.model, inputs, options)})


def task_of(served: Served) -> Task:
    """How the model's task is answered. ApiError for one that reads arrays."""
    if served.model.task not in TASKS:
        raise refused(f"the task of {served.name} is {served.model.task}, which reads arrays; send them to /v2/models/{served.name}/infer")
    return TASKS[served.model.task]


def _input(value: object, where: str, task: Task) -> tuple[str, ...]:
    """The texts of an input: a text, or an object with one for each of the task's members. ApiError."""
    if isinstance(value, str) and len(task.inputs) == 1:
        return (value,)
    if not isinstance(value, dict):
        members = ", ".join(f'"{name}": ...' for name in (*task.inputs, *task.optional))
        raise refused(f"{where} is {named(value)}, expected {'a text or ' if len(task.inputs) == 1 else ''}{{{members}}}", "inputs")
    fields = Fields(value, where)
    texts = [fields.required(name, str) for name in task.inputs]
    texts += [text for name in task.optional if (text := fields.take(name, str)) is not None]
    fields.finish()
    return tuple(texts)
