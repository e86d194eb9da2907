"""Event loops that signals end in order."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, but a signal cancels the work, whose tasks then clean up, and is KeyboardInterrupt after that.

    An exception raised by the signal's handler would hit some task in the middle of a step.
    """

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        for sig in SIGNALS:
            loop.add_signal_handler(sig, task.cancel)
        return await task

    before = {sig: signal.getsignal(sig) for sig in SIGNALS}
    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
