"""Which transports lead to a peer: what its address offers that this host has too, and what of it worked lately.

An address that names several, and the host that they lead to:

    auto:<host>,shm:@dualpath-...,tcp://10.0.0.1:40001,nixl://10.0.0.1:40002
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote, unquote

from dualpath.core.errors import TransferError

RETRY_S = 30.0  # until a way that could not connect is tried again before lesser ones
BEST_FIRST = {
    "shm": "it is on this host",
    "nixl": "both ends have RDMA",
    "tcp": "both ends have nothing better in common",
}
_SCHEME = "auto:"


class Way(NamedTuple):
    """A transport and the peer's address under it."""

    kind: str
    address: str


class Ways:
    """The ways to one peer."""

    def __init__(self, ways: Iterable[Way]) -> None:
        self.best_first = sorted(ways, key=lambda way: list(BEST_FIRST).index(way.kind))
        self._shunned_until: dict[Way, float] = {}

    def to_try(self) -> list[Way]:
        """All, the best first, but last those shunned. When its time has passed only one transfer tries a way again."""
        now = monotonic()
        shunned = [way for way, until in self._shunned_until.items() if now < until]
        for way in self._shunned_until.keys() - shunned:
            self.shun(way)
        return [way for way in self.best_first if way not in shunned] + shunned

    def shun(self, way: Way) -> None:
        """Prefer others for RETRY_S."""
        self._shunned_until[way] = monotonic() + RETRY_S

    def welcome(self, way: Way) -> None:
        """It works."""
        self._shunned_until.pop(way, None)


def join_address(host_id: str, addresses: Iterable[str]) -> str:
    """One address out of a host's addresses."""
    return _SCHEME + ",".join([host_id, *(quote(address, safe=":/@[]") for address in addresses)])


def ways_to(peer: str, host_id: str, kinds: Collection[str]) -> Ways:
    """The ways from this host to a peer, which may also be given by the address of one transport alone.

    TransferError when there is none.
    """
    theirs, addresses = host_id, [peer]
    if peer.startswith(_SCHEME):
        theirs, *quoted = peer.removeprefix(_SCHEME).split(",")
        addresses = [unquote(address) for address in quoted]
    ways = [Way(address.partition(":")[0], address) for address in addresses]
    common = [way for way in ways if way.kind in kinds and (way.kind != "shm" or theirs == host_id)]
    if not common:
        raise TransferError(f"{peer!r} is not an address that leads anywhere from here, by {' or '.join(kinds)}")
    return Ways(common)


def host_identity() -> str:
    """What only processes that share memory and abstract sockets have in common: this boot, network namespace, user."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/net').st_ino}.{os.getuid()}"
