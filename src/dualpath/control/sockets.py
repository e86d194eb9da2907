"""Sockets of the control plane: bounded messages, peers that are found dead, and CURVE on TCP.

With the cluster's key every TCP connection is CurveZMQ. Both sides' key pairs come from the key, so a server's public
key is as secret as the key itself: who lacks it gets no answer, and is closed before any message is read.
"""

import hmac
import logging
from collections.abc import AsyncIterator
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from dualpath.core import wire
from dualpath.core.address import is_loopback, tcp_host
from dualpath.core.errors import ConfigError
from dualpath.core.secret import derive

log = logging.getLogger("dualpath.control")
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # where libzmq asks whom to admit (ZeroMQ RFC 27)
_PING_MS = 2000
# Longer than a link's short outage, which TCP bridges without a loss, and than the default lease.
_DEAD_PEER_MS = 15_000
_HANDSHAKE_MS = 10_000
_CONNECT_MS = 3000
_RECONNECT_MS, _SLOWEST_RECONNECT_MS = 100, 2000
_FAILED = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH


def connect(socket: zmq.Socket[Any], endpoint: str, key: bytes | None) -> None:
    """Connect to a Door's endpoint. ConfigError for what is no endpoint, or for an open network without a key."""
    _set_up(socket, endpoint)
    if secret := _curve_secret(endpoint, key):
        socket.curve_publickey, socket.curve_secretkey = _key_pair(secret, "client")
        socket.curve_serverkey, _ = _key_pair(secret, "server")
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot connect to {endpoint}: {error.strerror}") from None


def connect_watched(socket: zmq.asyncio.Socket, endpoint: str, key: bytes | None) -> zmq.asyncio.Socket:
    """Connect, and give what `reconnections` reads; close it after the socket. Watched first: no event is missed."""
    monitor: zmq.asyncio.Socket = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | _FAILED)
    connect(socket, endpoint, key)
    return monitor


class Door:
    """A socket that others connect to, in a ZeroMQ context of its own: admission is a context's affair.

    `admit` must run as long as it is open.
    """

    def __init__(self, kind: int, key: bytes | None) -> None:
        self._key = key
        self._context = zmq.asyncio.Context()
        self.socket: zmq.asyncio.Socket = self._context.socket(kind)
        self._zap: zmq.asyncio.Socket = self._context.socket(zmq.REP)

    def bind(self, endpoint: str) -> str:
        """Listen; returns the endpoint with its real port. ConfigError when that cannot be."""
        _set_up(self.socket, endpoint)
        if secret := _curve_secret(endpoint, self._key):
            _, self.socket.curve_secretkey = _key_pair(secret, "server")
            self.socket.curve_server = True
            self.socket.zap_domain = b"control"
            self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without our answer nobody is admitted
            self._zap.bind(_ZAP_ENDPOINT)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"cannot listen at {endpoint}: {error.strerror}; name an address of this host and a free port"
            ) from None
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def admit(self) -> None:
        """Let in who proves to have the cluster's client key, which libzmq has verified, and nobody else."""
        if not self._key:
            return
        member = z85.decode(_key_pair(self._key, "client")[0])
        while True:
            version, ask, _, address, _, mechanism, *proofs = await self._zap.recv_multipart()
            known = mechanism == b"CURVE" and len(proofs) == 1 and hmac.compare_digest(proofs[0], member)
            if not known:
                log.warning("refused a client at %s: it has another key", address.decode(errors="replace"))
            answer = (b"200", b"OK") if known else (b"400", b"not a member of this cluster")
            await self._zap.send_multipart([version, ask, *answer, b"", b""])

    def close(self) -> None:
        """Close, and wait until the endpoint is free again."""
        self.socket.close(linger=0)
        self._zap.close(linger=0)
        self._context.term()


async def reconnections(monitor: zmq.asyncio.Socket, endpoint: str) -> AsyncIterator[None]:
    """Yields each time that a watched socket has its peer again after a loss: messages on their way are gone.

    Warns once when the peer does not accept us at all.
    """
    connected = warned = False
    while True:
        event = (await recv_monitor_message(monitor))["event"]
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            if connected:
                yield
            connected = True
        elif not (connected or warned):
            warned = True
            log.warning("%s does not accept us; do both sides use the same network.key_file?", endpoint)


def _set_up(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Options of every control socket. No high-water mark: who sends never waits, and bounds what it sends itself."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _SLOWEST_RECONNECT_MS)
    if endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAD_PEER_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, _DEAD_PEER_MS)


def _curve_secret(endpoint: str, key: bytes | None) -> bytes | None:
    """The key where it must be used: on all TCP, if there is one. ConfigError for an open network without a key."""
    if not endpoint.startswith("tcp://"):
        return None
    host = tcp_host(endpoint)
    if not key and not (host and is_loopback(host)):
        raise ConfigError(f"{endpoint} is reachable from other machines; set network.key_file, the same for all roles")
    return key


def _key_pair(key: bytes, side: str) -> tuple[bytes, bytes]:
    """CURVE's public and secret key of all clients or all servers of the cluster, as text."""
    secret = z85.encode(derive(key, f"control {side}"))
    return zmq.curve_public(secret), secret
