"""How a TCP connection begins: its lane, and with a key the proof of both sides that they know the cluster's secret.

    caller   MAGIC lane nonce                 without a key that is all
    server   nonce proof(server)
    caller   proof(caller)

A proof is a keyed hash over role, lane and both nonces, so it fits this connection only. The server proves itself
first: a caller never gives a proof to somebody who does not know the secret. Payload is authenticated by its
connection, not encrypted.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct

from dualpath.core.errors import ProtocolError, TransferError
from dualpath.core.secret import derive
from dualpath.transport.base import Lane
from dualpath.transport.streams import receive_views, send_views

DEADLINE_S = 5.0
NONCE_BYTES = PROOF_BYTES = 32
_HELLO = struct.Struct(f"<4sBB{NONCE_BYTES}s")  # magic with the version in its last character, keyed, lane, nonce
_MAGIC = b"DPH1"


class Greeting:
    """Begins connections with the secret of one endpoint; without a key (on loopback) no proof is asked or given."""

    def __init__(self, key: bytes | None) -> None:
        self._key = derive(key, "bulk connection") if key else None

    async def call(self, sock: socket.socket, lane: Lane) -> None:
        """The caller's side, on a fresh connection. TransferError when the server is not of this cluster."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        async with asyncio.timeout(DEADLINE_S):
            await _send(sock, _HELLO.pack(_MAGIC, self._key is not None, lane, nonce))
            if self._key is None:
                return
            try:
                answer = await _receive(sock, NONCE_BYTES + PROOF_BYTES)
            except TransferError:
                raise TransferError("the peer hung up on our greeting; do both have the same key file?") from None
            theirs, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
            if not hmac.compare_digest(proof, self._proof(b"server", lane, nonce, theirs)):
                raise TransferError("the peer does not know the cluster's secret; give both the same key file")
            await _send(sock, self._proof(b"caller", lane, nonce, theirs))

    async def answer(self, sock: socket.socket) -> Lane:
        """The server's side; returns the connection's lane. ProtocolError when the caller is not of this cluster."""
        async with asyncio.timeout(DEADLINE_S):
            magic, keyed, number, theirs = _HELLO.unpack(await _receive(sock, _HELLO.size))
            if magic != _MAGIC or number not in list(Lane):
                raise ProtocolError(f"a greeting that begins with {magic!r}: another protocol or version")
            lane = Lane(number)
            if bool(keyed) != (self._key is not None):
                raise ProtocolError("one side has a key file and the other has none; give both the same")
            if self._key is not None:
                nonce = secrets.token_bytes(NONCE_BYTES)
                await _send(sock, nonce + self._proof(b"server", lane, theirs, nonce))
                proof = await _receive(sock, PROOF_BYTES)
                if not hmac.compare_digest(proof, self._proof(b"caller", lane, theirs, nonce)):
                    raise ProtocolError("a caller that does not know the cluster's secret")
        return lane

    def _proof(self, role: bytes, lane: Lane, callers: bytes, servers: bytes) -> bytes:
        assert self._key is not None
        return hashlib.blake2b(
            role + bytes([lane]) + callers + servers, key=self._key, digest_size=PROOF_BYTES
        ).digest()


async def _send(sock: socket.socket, data: bytes) -> None:
    await send_views(sock, [memoryview(data)])


async def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    await receive_views(sock, [memoryview(data)])
    return bytes(data)
