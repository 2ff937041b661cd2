"""The direct route for encoders of texts: the class's own code is traced, with the names and answers of canonical encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError, one_line
from onnxport.export.attention_interface.experts import dense
from onnxport.export.canonical.graphs import TOLERANCE, agree
from onnxport.export.deferred import in_step
from onnxport.export.description import Arrays, EncoderModel
from onnxport.export.exported import Exported
from onnxport.export.golden import Inputs, encoder_goldens, ended_rows, real, special
from onnxport.export.hugging_face.original import Wrapped
from onnxport.export.source import Source
from onnxport.export.trace.tracer import Names, trace
from onnxport.export.user_code import check_alike, silence
from onnxport.progress import Progress
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.interface import ATTENTION_MASK

LONGEST = 1024  # tokens of the long golden answer: code that cuts or pads long texts shows itself there
INSTEAD = "return it with example inputs from a factory instead, as a tensor model"
BATCH, LENGTH = 3, 11  # of the trace; the tracer takes a 1 for a constant


class NamedOutputs(nn.Module):
    """The class as a function of named ids: `forward(input_ids, attention_mask, token_type_ids)` → tuple of float32 outputs.

    keys: the mask is handed on as transformers takes one that is finished, bool [batch, 1, 1, sequence], in place of what its own code
    would make of it. It is the same mask, in a form that fused kernels know.
    """

    def __init__(self, model: nn.Module, names: list[str], keys: bool) -> None:
        super().__init__()
        self.model, self.names, self.keys = model, names, keys

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """int64 [batch, sequence] each → the outputs called `names`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        mask = attention_mask.bool()[:, None, None, :] if self.keys else attention_mask
        outputs = self.model(input_ids=input_ids, attention_mask=mask, **types)
        return tuple(outputs[name].float() for name in self.names)


def export_traced_encoder(source: Source, model: EncoderModel, task: str, opset: int, progress: Progress) -> Exported:
    """Golden answers and graph of a model without a canonical form.

    CheckpointError: it answers otherwise than texts need, or torch cannot trace it.
    """
    (module,) = model.modules
    inside = "model." if isinstance(module, Wrapped) else ""
    name = type(module.model if inside else module).__name__
    model = replace(model, answer=_guarded_answer(model, name))
    _check_answers(model, name)
    goldens = encoder_goldens(model, source.tokenizers.get("source"), longest=LONGEST)
    progress("tracing the class's own code")
    types = {"token_type_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long)} if model.types else {}
    lengths = [LENGTH, 4, 7]
    inputs: dict[str, Any] = {
        "input_ids": ended_rows(Inputs(1, special({"pad": model.pad_id, "end": model.end_id})), model, lengths),
        "attention_mask": real(lengths).long(),
        **types,
    }
    parameters = {f"model.{key}": key.removeprefix(inside) for key, _ in [*module.named_parameters(), *module.named_buffers()]}
    modules = {"model": ""} | {f"model.{key}": key.removeprefix(inside) for key, _ in module.named_modules() if key}
    axes = dict.fromkeys(inputs, {0: "batch", 1: "sequence"})
    call = NamedOutputs(module, list(model.outputs), _takes_keys(module, list(model.outputs), goldens))
    with dense(module):
        graph = trace(call, inputs, axes, list(inputs), model.outputs, Names(parameters, modules), opset, "encoder")
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="direct",
        opset=opset,
        graphs={"encoder": graph},
        goldens=goldens,
        encoding=model.encoding_config(),
        tokenizers=source.tokenizers,
        source_hashes=source.hashes,
        settings=source.settings | {"class": name},
        layers=model.layers,
    )


def _takes_keys(module: nn.Module, names: list[str], goldens: dict[str, np.ndarray]) -> bool:
    """Whether the class answers every golden case alike with a finished mask; code that reads masks in other ways does not."""
    call = NamedOutputs(module, names, keys=True)

    def check(case: Mapping[str, np.ndarray]) -> None:
        inputs = {name: torch.from_numpy(array) for name, array in golden.inputs(case).items()}
        mask = inputs[ATTENTION_MASK] > 0
        for name, answer in zip(names, call(**inputs), strict=True):
            expected = torch.from_numpy(golden.outputs(case)[name])
            whole = expected.shape[:2] != mask.shape
            agree(expected if whole else expected[mask], answer if whole else answer[mask], name)

    try:
        with silence():
            in_step([module], [partial(check, case) for case in golden.by_case(goldens).values()])
    except Exception:  # whatever the class's own code raises, or ParityError: not for this class
        return False
    return True


def _check_answers(model: EncoderModel, name: str) -> None:
    """CheckpointError unless the class answers what an encoder of texts answers, of every length it claims, and of each text the same
    whatever is beside it in a batch."""
    lengths = [min(9, model.max_length or 9), min(4, model.max_length or 4)]
    ids = ended_rows(Inputs(2, special({"pad": model.pad_id, "end": model.end_id})), model, lengths)
    both, again = (model.answer(_inputs(model, ids, real(lengths).long())) for _ in range(2))
    check_alike(name, list(both.values()), list(again.values()))
    alone = model.answer(_inputs(model, ids[1:, : lengths[1]], torch.ones(1, lengths[1], dtype=torch.long)))
    for output, shape in model.outputs.items():
        here = both[output]
        sizes = {"batch": 2, "sequence": lengths[0]}
        wanted = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)
        if tuple(here.shape) != wanted:
            raise CheckpointError(f"{name} answers {output} {list(here.shape)}, expected {list(wanted)}; {INSTEAD}")
        padded, single = here[1], alone[output][0]
        padded = padded[: lengths[1]] if "sequence" in shape else padded
        bound = TOLERANCE * max(1.0, single.abs().max().item())
        if not (padded - single).abs().max().item() <= bound:
            raise CheckpointError(f"{name} answers a text otherwise when it is padded in a batch, expected the same {output}; {INSTEAD}")


def _inputs(model: EncoderModel, ids: Tensor, mask: Tensor) -> Arrays:
    return {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": torch.zeros_like(ids)} if model.types else {})


def _guarded_answer(model: EncoderModel, name: str) -> Callable[[Arrays], Arrays]:
    """The model's `answer`, which turns whatever the class's own code raises into a CheckpointError."""

    def answer(inputs: Arrays) -> Arrays:
        try:
            return model.answer(inputs)
        except Exception as error:  # the class's own code raises what it likes
            raise CheckpointError(
                f"{name} does not answer {' and '.join(model.outputs)} of {inputs['input_ids'].shape[1]} tokens "
                f"({type(error).__name__}: {one_line(error, 200)}); {INSTEAD}"
            ) from error

    return answer
