"""The gateway's routes: OpenAI's API, and what operators look at."""

import hmac
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.report import ClusterReport
from dualpath.gateway.desk import ClusterDesk, Limits
from dualpath.gateway.endpoint import GenerationEndpoint
from dualpath.gateway.errors import ErrorMiddleware, error_response, http_exception
from dualpath.gateway.metrics import exposition
from dualpath.gateway.schema import ChatRequest, CompletionRequest
from dualpath.gateway.serve import Service
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.gateway.wire import ChatReply, Reply
from dualpath.scheduler.client import SchedulerClient

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_PATHS = {"/health"}  # a load balancer's probe carries no key


def build_app(
    client: SchedulerClient, tokenizer: Tokenizer, *, api_key: str | None = None, limits: Limits | None = None
) -> Starlette:
    """The ASGI app. With an `api_key` every path but /health requires `Authorization: Bearer <key>`."""
    service = Service(client, tokenizer, limits or Limits())
    pages = Pages(service)
    routes = [
        Route("/v1/completions", GenerationEndpoint(service, CompletionRequest, Reply), methods=["POST"]),
        Route("/v1/chat/completions", GenerationEndpoint(service, ChatRequest, ChatReply), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
    ]
    return assemble(routes, pages, api_key)


def assemble(routes: list[Route], pages: "Pages", api_key: str | None) -> Starlette:
    """An app of the operators' pages and `routes`, which come after them."""
    operators = [
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
        Route("/cluster", pages.cluster),
        Route("/explain/{id}", pages.explain),
    ]
    middleware = [Middleware(ErrorMiddleware)]
    if api_key is not None:
        middleware.append(Middleware(KeyMiddleware, api_key=api_key))
    return Starlette(
        routes=operators + routes, middleware=middleware, exception_handlers={HTTPException: http_exception}
    )


class Pages:
    """The small read-only endpoints."""

    def __init__(self, service: ClusterDesk) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        if name != self._service.spec.name:
            words = f"the model {name!r} does not exist; this server has {self._service.spec.name!r}"
            raise RequestError(words, param="model", code="model_not_found", status=404)
        return _json(self._model())

    async def health(self, request: Request) -> Response:
        """GET /health: 200 when the cluster can serve, else 503 with what is missing."""
        try:
            report = await self._service.report()
        except ServiceError as error:
            report = ClusterReport(missing=[str(error)])
        status = "ready" if report.ready else "not ready"
        return _json({"status": status, "missing": report.missing}, 200 if report.ready else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics; without a scheduler: not ready, and the gateway's own metrics."""
        try:
            report = await self._service.report()
        except ServiceError:
            report = ClusterReport()
        return Response(exposition(report, self._service.latencies), media_type=METRICS_TYPE)

    async def cluster(self, request: Request) -> Response:
        """GET /cluster: the ClusterReport."""
        return _json(await self._service.report())

    async def explain(self, request: Request) -> Response:
        """GET /explain/{id}: where the time of a recent request went."""
        found = self._service.history.get(request.path_params["id"])
        if found is None:
            words = "no such request among the last served; ids are in the x-request-id header of answers"
            raise RequestError(words, param="id", code="request_not_found", status=404)
        return _json(found)

    def _model(self) -> dict[str, object]:
        spec = self._service.spec
        context = self._service.max_tokens_per_request
        return {
            "id": spec.name,
            "object": "model",
            "created": 0,
            "owned_by": "dualpath",
            "max_model_len": context,
        }


class KeyMiddleware:
    """Requires the API key."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what carries the key; answer 401 to the rest."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._wanted):
                words = "a valid API key is required; send the header `Authorization: Bearer <key>`"
                refusal = RequestError(words, status=401, code="invalid_api_key")
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
