"""Every answer that is not a success has OpenAI's error shape, and never a traceback."""

import logging
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dualpath.core.errors import RequestError, ServiceError

RETRY_AFTER_S = 1
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_log = logging.getLogger(__name__)


def error_body(error: Exception) -> tuple[int, dict[str, object]]:
    """HTTP status and OpenAI error object; what was not foreseen tells the client no details."""
    if isinstance(error, RequestError):
        return error.status, _shape(error.status, str(error), error.param, error.code)
    if isinstance(error, ServiceError):
        return 503, _shape(503, str(error), None, "service_unavailable")
    _log.error("unexpected error in a request", exc_info=error)
    return 500, _shape(500, "internal error; the gateway's log has the details", None, "internal_error")


def error_response(error: Exception) -> Response:
    """The whole HTTP answer to an exception."""
    status, body = error_body(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, method not allowed) in the same shape."""
    assert isinstance(error, HTTPException)
    words = f"{HTTPStatus(error.status_code).phrase}: {request.method} {request.url.path}"
    response = error_response(RequestError(words, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


def _shape(status: int, message: str, param: str | None, code: str | None) -> dict[str, object]:
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorMiddleware:
    """Outermost layer: turns exceptions into answers, as long as no answer has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; on an exception answer in the error shape, or log it when the answer had begun."""
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if scope["type"] != "http":
                raise
            if not began:  # later errors were put into the stream
                await error_response(error)(scope, receive, send)
