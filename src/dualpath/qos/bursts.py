"""Traffic of both kinds between two hosts: short bursts that stand for collectives, bulk that stands for KV blocks.

Model-execution collectives are sub-millisecond bursts that wait for their answer (paper section 4). `measure` plays
them in the class MODEL, `flood` fills the line in the class BLOCKS; a BurstServer is the other end of both.
"""

import math
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from dualpath.core.errors import ServiceError
from dualpath.core.traffic import Traffic
from dualpath.qos.server import realtime
from dualpath.qos.wire import ECHO, SINK, Greeting, connect, receive_exactly

MESSAGE_BYTES = 4096
INTERVAL_S = 0.001
DEADLINE_S = 5.0
FLOOD_FRAME_BYTES = 256 * 1024
FLOOD_CONNECTIONS = 4
_DROP_UNSENT = struct.pack("ii", 1, 0)  # so that a flood that ended does not load the line any more

Peer = tuple[str, int]


class RoundTrips(msgspec.Struct, frozen=True):
    """Round-trip times of one measurement, in seconds."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float
    realtime: bool  # measured by a thread that ordinary ones cannot hold up


def summarize(times_ns: Sequence[int], *, realtime: bool) -> RoundTrips:
    """Percentiles of round trips; ServiceError if there was none."""
    if not times_ns:
        raise ServiceError("no round trip was measured; measure for longer")
    ordered = sorted(times_ns)
    p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
    return RoundTrips(len(ordered), p50 / 1e9, p99 / 1e9, ordered[-1] / 1e9, realtime)


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value with at least `share` of all at or below it (nearest rank)."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def round_trips(
    peer: Peer,
    seconds: float,
    *,
    message_bytes: int = MESSAGE_BYTES,
    interval_s: float = INTERVAL_S,
    traffic: Traffic = Traffic.MODEL,
    deadline_s: float = DEADLINE_S,
) -> tuple[list[int], bool]:
    """Times in ns of a message every `interval_s`, and whether the thread was realtime. ServiceError on a lost peer."""
    message = bytes(message_bytes)
    answer = memoryview(bytearray(message_bytes))
    times_ns: list[int] = []
    with connect(peer, Greeting(ECHO, message_bytes), traffic, deadline_s=deadline_s) as link, realtime() as first:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                start_ns = time.perf_counter_ns()
                link.sendall(message)
                receive_exactly(link, answer)
                took_ns = time.perf_counter_ns() - start_ns
                times_ns.append(took_ns)
                time.sleep(max(interval_s - took_ns / 1e9, 0))
        except OSError as error:
            raise ServiceError(f"the burst server at {peer[0]}:{peer[1]} was lost ({error}); is it still up?") from None
    return times_ns, first


def measure(peer: Peer, seconds: float, *, message_bytes: int = MESSAGE_BYTES) -> RoundTrips:
    """Round trips of the model class over `seconds`, a message about every millisecond."""
    times_ns, first = round_trips(peer, seconds, message_bytes=message_bytes)
    return summarize(times_ns, realtime=first)


def flood(
    peer: Peer, seconds: float, connections: int = FLOOD_CONNECTIONS, *, stop: threading.Event | None = None
) -> int:
    """Fill the line in the class BLOCKS for `seconds` or until `stop`; the bytes that were handed to the kernel."""
    stop = stop or threading.Event()
    end = time.monotonic() + seconds
    sent = [0] * connections
    errors: list[ServiceError] = []

    def send(number: int) -> None:
        frame = bytes(FLOOD_FRAME_BYTES)
        try:
            with connect(peer, Greeting(SINK, len(frame)), Traffic.BLOCKS, deadline_s=DEADLINE_S) as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_UNSENT)
                while time.monotonic() < end and not stop.is_set():
                    sent[number] += link.send(frame)
        except OSError as error:
            errors.append(ServiceError(f"bulk data to {peer[0]}:{peer[1]} stopped: {error}"))
        except ServiceError as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * DEADLINE_S)
    if errors:
        raise errors[0]
    return sum(sent)


@contextmanager
def flooding(peer: Peer, connections: int = FLOOD_CONNECTIONS, *, most_s: float = 60.0) -> Iterator[None]:
    """A flood in the background while the block runs."""
    stop = threading.Event()
    outcome: list[ServiceError] = []

    def run() -> None:
        try:
            flood(peer, most_s, connections, stop=stop)
        except ServiceError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        time.sleep(0.3)  # slow start is over, queues are full
        yield
    finally:
        stop.set()
        thread.join(2 * DEADLINE_S)
    if outcome:
        raise outcome[0]


class Contrast(msgspec.Struct, frozen=True):
    """Round trips of the model class without and with bulk data on the same line."""

    idle: RoundTrips
    loaded: RoundTrips

    @property
    def p99_ratio(self) -> float:
        """How much longer the slowest percent take under load."""
        return self.loaded.p99_s / self.idle.p99_s


def contrast(peer: Peer, seconds: float, *, rounds: int = 4, connections: int = FLOOD_CONNECTIONS) -> Contrast:
    """Idle and loaded round trips, in turns, so that a change of the machine's own load meets both alike."""
    idle: list[int] = []
    loaded: list[int] = []
    first = True
    for _ in range(rounds):
        times_ns, first = round_trips(peer, seconds / rounds / 2)
        idle += times_ns
        with flooding(peer, connections):
            times_ns, first = round_trips(peer, seconds / rounds / 2)
        loaded += times_ns
    return Contrast(summarize(idle, realtime=first), summarize(loaded, realtime=first))
