"""/v1/rerank: documents in the order of their relevance to a query, in the form that Cohere's and Jina's clients know."""

from __future__ import annotations

from typing import Any

from onnxport.serve.errors import refused
from onnxport.serve.fields import Fields, named
from onnxport.serve.openai.options import HARMLESS
from onnxport.serve.sending import Reply, to_json
from onnxport.serve.service import Call


async def rerank(call: Call) -> Reply:
    """Answer a request for a ranking."""
    fields = call.fields()
    served = call.model(fields.required("model", str))
    query = fields.required("query", str)
    documents = [_text(one, place) for place, one in enumerate(fields.required("documents", list))]
    most = fields.whole("top_n", 1)
    whole = fields.take("return_documents", bool, default=False)
    stride = fields.take("stride", int)
    fields.skip(HARMLESS)
    fields.finish()
    tokens = await call.charge(served, [query, *documents], "documents")
    found = await served.model.arerank(query, documents, top_k=most, stride=stride)
    results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found]
    for one in results if whole else ():
        one["document"] = {"text": documents[one["index"]]}
    return to_json({"object": "list", "model": served.name, "results": results, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def _text(value: object, place: int) -> str:
    """A document: a text, or an object with one."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise refused(f"documents[{place}] is {named(value)}, expected a text", "documents")
    fields = Fields(value, f"documents[{place}]")
    text: str = fields.required("text", str)
    fields.finish()
    return text
