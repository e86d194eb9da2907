"""How every route that computes lets a request in: a place, the whole body, and an eye on the client."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Send

from dualpath.core.errors import RequestError
from dualpath.gateway.body import read_body
from dualpath.gateway.desk import ClusterDesk


class ClientStalled(Exception):
    """The client took nothing for too long; it counts as gone."""


async def put(send: Send, message: dict[str, Any], timeout_s: float) -> None:
    """Send within a deadline: a client that reads nothing must not hold the cluster. ClientStalled."""
    try:
        async with asyncio.timeout(timeout_s):
            await send(message)
    except TimeoutError:
        raise ClientStalled from None


async def serve_admitted(
    desk: ClusterDesk, receive: Receive, serve: Callable[[bytes], Coroutine[Any, Any, None]]
) -> None:
    """Serve one request's body and count how it ended. RequestError 429 when all places are taken."""
    outcome = "failed"
    try:
        with desk.admitted():
            body = await read_body(receive, desk.limits)
            served = await unless_disconnected(serve(body), receive)
        outcome = "served" if served else "cancelled"
    except RequestError:
        outcome = "refused"
        raise
    finally:
        desk.latencies.ended(outcome)


async def unless_disconnected(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run `work`, but cancel it when the client goes away; whether it ran to its end."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    except ClientStalled:
        return False
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
