"""What every kind of gateway keeps: its cluster, its counters, and a bound on requests at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.gateway.metrics import Latencies
from dualpath.gateway.timing import History
from dualpath.scheduler.client import SchedulerClient


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the gateway's queues and waits."""

    max_concurrent_requests: int = 256
    body_bytes: int = 16 * 2**20
    body_timeout_s: float = 30.0
    event_timeout_s: float = 600.0  # longest silence of the cluster within a request
    send_timeout_s: float = 60.0  # longest time in which a client takes nothing
    report_timeout_s: float = 5.0


class ClusterDesk:
    """One cluster as seen by its gateway."""

    def __init__(self, client: SchedulerClient, limits: Limits) -> None:
        self.limits = limits
        self.latencies = Latencies()
        self.history = History()
        self._client = client
        self._active = 0

    @property
    def spec(self) -> ModelSpec:
        """The served model."""
        return self._client.spec

    @property
    def max_tokens_per_request(self) -> int:
        """The longest prompt + generation: what model, arena and decode engine all can hold."""
        return min(self.spec.max_context_tokens, self._client.max_request_tokens)

    async def report(self) -> ClusterReport:
        """The cluster's report within the deadline; ServiceError otherwise."""
        try:
            async with asyncio.timeout(self.limits.report_timeout_s):
                return await self._client.report()
        except TimeoutError:
            raise ServiceError("the scheduler did not answer in time") from None

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One of the places for concurrent requests; RequestError 429 when all are taken."""
        if self._active >= self.limits.max_concurrent_requests:
            words = f"{self._active} requests are being served already; try again later"
            raise RequestError(words, status=429, code="too_many_requests")
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
