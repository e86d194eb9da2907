"""A request's attempts at engines that are called by HTTP, as the scheduler begins and ends them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, cast

import httpx
import msgspec

from dualpath.core.engine_wire import GRANT_PARAMETER
from dualpath.core.errors import ServiceError
from dualpath.core.report import Role
from dualpath.core.request import Done, Ready, Submission, Tokens
from dualpath.gateway.servers import JSON, Refusal, Servers
from dualpath.scheduler.client import SchedulerClient

log = logging.getLogger("dualpath.gateway")


class Attempts:
    """`async with`: follows the scheduler, calls prefill engines; `decode()` tells where to get the answer."""

    def __init__(
        self, client: SchedulerClient, servers: Servers, submission: Submission, prefill: tuple[str, Mapping[str, Any]]
    ) -> None:
        """`prefill`: path and body of the call that makes a prefill engine compute the prompt."""
        self._client = client
        self._servers = servers
        self._submission = submission
        self._path, self._body = prefill
        self._decodes: asyncio.Queue[Ready | Exception] = asyncio.Queue()
        self._prefill: asyncio.Task[None] | None = None
        self._done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._following: asyncio.Task[None]
        self.cached_tokens = 0

    async def __aenter__(self) -> "Attempts":
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._following, self._prefill) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._done.cancel()

    async def decode(self) -> Ready:
        """The decode engine of the next attempt that comes so far; whatever ends the request is raised."""
        found = await self._decodes.get()
        while not self._decodes.empty():
            found = self._decodes.get_nowait()  # only the last attempt counts
        if isinstance(found, Exception):
            raise found
        return found

    async def done(self, deadline_s: float) -> Done | None:
        """The scheduler's last word; None when it does not come in time."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._done), deadline_s)
        except TimeoutError:
            return None

    async def _follow(self) -> None:
        try:
            events = cast(AsyncGenerator[Tokens | Ready | Done, None], self._client.submit(self._submission))
            async with aclosing(events):
                async for event in events:
                    self._on(event)
        except Exception as error:
            self._decodes.put_nowait(error)

    def _on(self, event: Tokens | Ready | Done) -> None:
        if isinstance(event, Done):
            if not self._done.done():
                self._done.set_result(event)
        elif isinstance(event, Ready) and event.role is Role.PREFILL:
            if self._prefill:
                self._prefill.cancel()
            self.cached_tokens = event.cached_tokens
            self._prefill = asyncio.create_task(self._call_prefill(event))
        elif isinstance(event, Ready):
            self._decodes.put_nowait(event)

    async def _call_prefill(self, ready: Ready) -> None:
        """Its answer says nothing: the scheduler tells when the KV has arrived. Only a refusal is for the client."""
        body = with_grant(self._body, ready.grant, 1)
        try:
            response = await self._servers.http.post(f"{ready.url}{self._path}", content=body, headers=JSON)
        except httpx.HTTPError as error:  # the scheduler misses the engine, too, and begins again
            log.warning("prefill at %s failed: %s", ready.url, error or repr(error))
            return
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            words = f"the prefill server at {ready.url} answered {response.status_code}: {response.text[:200]}"
            self._decodes.put_nowait(ServiceError(words))
        elif response.status_code != httpx.codes.OK:
            self._decodes.put_nowait(Refusal(response))


def with_grant(body: Mapping[str, Any], grant: int, sequences: int) -> bytes:
    """`body` as JSON, bound to a grant."""
    params = {GRANT_PARAMETER: {"grant": grant, "sequences": sequences}}
    return msgspec.json.encode({**body, "kv_transfer_params": params})
