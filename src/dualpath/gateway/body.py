"""Reading a request's body within bounds of size and time."""

import asyncio

from starlette.types import Receive

from dualpath.core.errors import RequestError
from dualpath.gateway.desk import Limits


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """The whole body; RequestError 413 when it is too large, 408 when it does not come in time or at all."""
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _collect(receive, limits.body_bytes)
    except TimeoutError:
        raise RequestError("the body did not arrive in time", status=408, code="body_timeout") from None


async def _collect(receive: Receive, limit_bytes: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the connection was closed within the body", status=408, code="body_timeout")
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            words = f"the body is larger than {limit_bytes} bytes; shorten the prompt"
            raise RequestError(words, status=413, code="body_too_large")
        more = message.get("more_body", False)
    return bytes(body)
