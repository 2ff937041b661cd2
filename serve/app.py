"""The routes of a server, and who answers each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onnxport.serve.endpoint import Endpoint
from onnxport.serve.errors import ApiError, kserve_body, openai_body
from onnxport.serve.kserve import infer as kserve
from onnxport.serve.openai.chat import chat
from onnxport.serve.openai.completions import completions
from onnxport.serve.openai.embeddings import embeddings
from onnxport.serve.openai.rerank import rerank
from onnxport.serve.openai.run import run
from onnxport.serve.sending import Events, Reply, encoded, to_json
from onnxport.serve.service import Call, Service

Answer = Callable[[Call], Awaitable[Reply | Events]]


def app(service: Service) -> Starlette:
    """The ASGI application of a server."""
    posts: dict[str, Answer] = {
        "/v1/completions": completions, "/v1/chat/completions": chat, "/v1/embeddings": embeddings, "/v1/rerank": rerank, "/v1/run": run
    }  # fmt: skip
    gets: dict[str, Answer] = {"/v1/models": models, "/v1/models/{model:path}": model, "/metrics": metrics, "/v2": kserve.server}
    model_routes = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    routes = [Route("/health", Endpoint(service, "/health", health, open_to_all=True, light=True), methods=["GET"])]
    states: dict[str, Answer] = {"/v2/health/live": kserve.live, "/v2/health/ready": kserve.ready}
    for path, answer in states.items():
        routes.append(Route(path, Endpoint(service, path, answer, kserve_body, open_to_all=True, light=True), methods=["GET"]))
    for path in model_routes:
        gets |= {path: kserve.metadata, f"{path}/ready": kserve.model_ready}
        routes.append(Route(f"{path}/infer", Endpoint(service, f"{path}/infer", kserve.infer, kserve_body), methods=["POST"]))
    for path, answer in gets.items():
        errors = kserve_body if path.startswith("/v2") else openai_body
        routes.append(Route(path, Endpoint(service, path, answer, errors, light=True), methods=["GET"]))
    for path, answer in posts.items():
        routes.append(Route(path, Endpoint(service, path, answer), methods=["POST"]))
    return Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})


async def health(call: Call) -> Reply:
    """Whether the server answers."""
    return to_json({"status": "ok"})


async def metrics(call: Call) -> Reply:
    """What the server counts."""
    return Reply(call.service.metrics.text(), call.service.metrics.content_type)


async def models(call: Call) -> Reply:
    """The models that are served."""
    return to_json({"object": "list", "data": [_told(call, one.name) for one in call.service.models]})


async def model(call: Call) -> Reply:
    """One of them."""
    return to_json(_told(call, call.path["model"]))


def _told(call: Call, name: str) -> dict[str, object]:
    one = call.service.models.find(name)
    precision = {"precision": one.model.precision, "device": one.model.device}
    return {"id": one.name, "object": "model", "created": one.created, "owned_by": "onnxport", "task": one.model.task, **precision}


async def _unrouted(request: Request, error: Exception) -> Response:
    """A path or a method that no route has."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{request.method} is not for {request.url.path[:100]}"
    else:
        message = f"there is no {request.url.path[:100]}; docs/serving.md lists the paths"
    found = ApiError(error.status_code, message, code="unknown_url")
    body = kserve_body(found) if request.url.path.startswith("/v2") else openai_body(found)
    return Response(encoded(body), error.status_code, media_type="application/json", headers=error.headers)
