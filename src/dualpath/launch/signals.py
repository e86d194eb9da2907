"""How a command in the foreground ends."""

import signal
from types import FrameType


def end_like_ctrl_c() -> None:
    """SIGTERM and SIGHUP raise KeyboardInterrupt too; so does SIGINT where a shell's background job ignores it."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
