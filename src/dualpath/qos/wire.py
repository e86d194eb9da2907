"""What the burst generator and its server say to each other: a greeting, then frames of one fixed size."""

import socket
import struct
from typing import NamedTuple

from dualpath.core.errors import ConfigError, ProtocolError, ServiceError
from dualpath.core.traffic import MARKS, Traffic

ECHO = b"E"  # every frame comes back
SINK = b"S"  # frames are counted by nobody and dropped
LARGEST_FRAME_BYTES = 256 * 1024
_MAGIC = b"dpburst1"
_GREETING = struct.Struct("!8scxxxI")
GREETING_BYTES = _GREETING.size


class Greeting(NamedTuple):
    """First bytes of a connection."""

    kind: bytes
    frame_bytes: int


def pack_greeting(greeting: Greeting) -> bytes:
    """Bytes of a greeting. ConfigError for a frame size that a server refuses."""
    if not 1 <= greeting.frame_bytes <= LARGEST_FRAME_BYTES:
        raise ConfigError(f"a frame has 1..{LARGEST_FRAME_BYTES} bytes, not {greeting.frame_bytes}")
    return _GREETING.pack(_MAGIC, greeting.kind, greeting.frame_bytes)


def unpack_greeting(data: bytes) -> Greeting:
    """The greeting in `data`; ProtocolError for anything else."""
    magic, kind, frame_bytes = _GREETING.unpack(data)
    if magic != _MAGIC or kind not in (ECHO, SINK) or not 1 <= frame_bytes <= LARGEST_FRAME_BYTES:
        raise ProtocolError("not a burst generator of this version")
    return Greeting(kind, frame_bytes)


def mark(connection: socket.socket, traffic: Traffic) -> None:
    """Mark what `connection` sends: DSCP for the network, SO_PRIORITY for the host's own queues."""
    value = MARKS[traffic].traffic_class
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MARKS[traffic].priority)  # IP_TOS resets it: last


def connect(peer: tuple[str, int], greeting: Greeting, traffic: Traffic, *, deadline_s: float) -> socket.socket:
    """A marked connection to a burst server; every later call on it has the same deadline."""
    hello = pack_greeting(greeting)
    try:
        connection = socket.create_connection(peer, timeout=deadline_s)
        mark(connection, traffic)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(hello)
    except OSError as error:
        raise ServiceError(
            f"no burst server answers at {peer[0]}:{peer[1]} ({error}); start one there with: dualpath qos --serve"
        ) from None
    return connection


def receive_exactly(connection: socket.socket, into: memoryview) -> None:
    """Fill `into`; ConnectionError when the other side ends before."""
    got = 0
    while got < len(into):
        count = connection.recv_into(into[got:])
        if not count:
            raise ConnectionError("the other side has closed the connection")
        got += count
