"""/v1/embeddings: vectors of texts."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from onnxport.serve.errors import refused
from onnxport.serve.openai.options import HARMLESS
from onnxport.serve.sending import Reply, to_json
from onnxport.serve.service import Call
from onnxport.serve.tasks import TURN

OURS = {"prompt": str, "prompt_name": str, "normalize_embeddings": bool, "stride": int}


async def embeddings(call: Call) -> Reply:
    """Answer a request for vectors."""
    fields = call.fields()
    served = call.model(fields.required("model", str))
    given = fields.required("input", str, list)
    if isinstance(given, list) and given and not isinstance(given[0], str):
        raise refused("input holds token ids or other values, expected texts: ids of another model's tokenizer mean nothing here", "input")
    texts = [given] if isinstance(given, str) else fields.texts("input", given)
    form = fields.choice("encoding_format", ("float", "base64"), "float")
    options: dict[str, Any] = {"truncate_dim": fields.whole("dimensions", 1)}
    options |= {name: value for name, kind in OURS.items() if (value := fields.take(name, kind)) is not None}
    fields.skip(HARMLESS)
    fields.finish()
    tokens = await call.charge(served, texts, "input")
    data: list[dict[str, Any]] = []
    for start in range(0, len(texts), TURN):
        for vector in await served.model.aencode(texts[start : start + TURN], **options):
            data.append({"object": "embedding", "index": len(data), "embedding": _told(vector, form)})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": data, "model": served.name, "usage": usage})


def _told(vector: np.ndarray, form: str) -> list[float] | str:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
