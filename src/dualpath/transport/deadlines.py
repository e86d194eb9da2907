"""Deadlines of the transfers under way, which closing an endpoint brings forward."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadlines:
    """Every transfer runs inside `one()`; `expire_all()` ends them now, wherever they wait."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._scopes: set[asyncio.Timeout] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """TimeoutError when the body takes longer than the deadline, or when all are made to expire."""
        async with asyncio.timeout(self.deadline_s) as scope:
            self._scopes.add(scope)
            self._quiet.clear()
            try:
                yield
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._quiet.set()

    async def expire_all(self) -> None:
        """Let the deadlines under way pass; returns when their transfers have ended."""
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)
        await self._quiet.wait()
