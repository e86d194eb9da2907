"""The best transport for each peer, found without anybody's word: shared memory on the same host, RDMA by NIXL where
both ends have it, else TCP.

An endpoint listens on all that its host has, and its address names them all (ways.py).
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from dualpath.core.address import is_loopback
from dualpath.core.errors import ConfigError
from dualpath.transport.base import Authorize, Lane, LocalRanges, RemoteRanges, Transport, Unreachable
from dualpath.transport.nic import NicPair
from dualpath.transport.nixl_devices import interface_of
from dualpath.transport.shm import ShmTransport
from dualpath.transport.tcp import TcpTransport
from dualpath.transport.ways import BEST_FIRST, Way, Ways, host_identity, join_address, ways_to

MAX_PEERS = 4096  # remembered; the oldest is then forgotten, as peers that restart have new addresses
_NETWORK_CLASS = Path("/sys/class/net")
_log = logging.getLogger(__name__)


class AutoTransport:
    """An endpoint of all kinds that this host has; see base.Transport for what it promises.

    On loopback without a key that is shared memory alone: all peers are here, and any user could reach a TCP port.
    Only when no connection can be had is a transfer tried with the next kind; any other failure is the transfer's.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        socket_dir: Path | None = None,
        nics: NicPair | None = None,
        deadline_s: float = 30,
        key: bytes | None = None,
    ) -> None:
        nics = nics or NicPair(None)
        self._host_id = host_identity()
        self._kinds: dict[str, Transport] = {"shm": ShmTransport(socket_dir, nics=nics, deadline_s=deadline_s)}
        if key is not None or not is_loopback(host):
            self._kinds["tcp"] = TcpTransport(host, port, nics=nics, deadline_s=deadline_s, key=key)
        try:
            self._kinds["nixl"] = _nixl(host, nics, deadline_s, key)
        except ConfigError as error:
            _log.info("transport nixl is not available: %s", error)
        self._peers: dict[str, Ways] = {}
        self._fallbacks: Counter[str] = Counter()

    @property
    def address(self) -> str:
        """auto:host,address,address; valid after start()."""
        return join_address(self._host_id, (kind.address for kind in self._kinds.values()))

    async def start(self) -> None:
        """Listen on all kinds; ConfigError when one of them cannot."""
        try:
            for kind in self._kinds.values():
                await kind.start()
        except BaseException:
            await self.close()
            raise

    def register(self, name: str, memory: memoryview, *, fd: int = -1, authorize: Authorize) -> None:
        """As base.Transport, with all kinds or none."""
        for number, kind in enumerate(kinds := list(self._kinds.values())):
            try:
                kind.register(name, memory, fd=fd, authorize=authorize)
            except BaseException:
                for earlier in kinds[:number]:
                    earlier.unregister(name)
                raise

    def unregister(self, name: str) -> None:
        """As base.Transport, with all kinds."""
        for kind in self._kinds.values():
            kind.unregister(name)

    async def drained(self, name: str, grant: int) -> None:
        """As base.Transport, over all kinds; none begins a transfer meanwhile, as the owner refuses the grant."""
        for kind in self._kinds.values():
            await kind.drained(name, grant)

    async def fetch(self, source: RemoteRanges, into: LocalRanges, *, lane: Lane) -> None:
        """As base.Transport, by the best kind that connects."""

        async def transfer(way: Way) -> None:
            there = RemoteRanges(way.address, source.region, source.grant, source.ranges)
            await self._kinds[way.kind].fetch(there, into, lane=lane)

        await self._by_best(source.peer, transfer)

    async def push(self, source: LocalRanges, into: RemoteRanges, *, lane: Lane) -> None:
        """As base.Transport, by the best kind that connects."""

        async def transfer(way: Way) -> None:
            there = RemoteRanges(way.address, into.region, into.grant, into.ranges)
            await self._kinds[way.kind].push(source, there, lane=lane)

        await self._by_best(into.peer, transfer)

    def lane_bytes(self) -> dict[str, int]:
        """As base.Transport, over all kinds."""
        each = [kind.lane_bytes() for kind in self._kinds.values()]
        return {lane: sum(lanes[lane] for lanes in each) for lane in each[0]}

    def kind_bytes(self) -> dict[str, int]:
        """As base.Transport."""
        return {name: count for kind in self._kinds.values() for name, count in kind.kind_bytes().items()}

    def fallbacks(self) -> dict[str, int]:
        """As base.Transport; each kind that this endpoint has."""
        return {kind: self._fallbacks[kind] for kind in self._kinds}

    async def close(self) -> None:
        """As base.Transport, all kinds."""
        for kind in self._kinds.values():
            await kind.close()

    # The choice.

    async def _by_best(self, peer: str, transfer: Callable[[Way], Awaitable[None]]) -> None:
        ways = self._peers.get(peer) or self._meet(peer)
        *others, last = ways.to_try()
        failed: dict[Way, Unreachable] = {}
        for way in others:
            try:
                await transfer(way)
            except Unreachable as error:
                failed[way] = error
            else:
                self._reached(peer, ways, way, failed)
                return
        await transfer(last)
        self._reached(peer, ways, last, failed)

    def _meet(self, peer: str) -> Ways:
        ways = ways_to(peer, self._host_id, self._kinds)
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = ways
        kind = ways.best_first[0].kind
        _log.info("transfers with %s go by %s: %s", peer, kind, BEST_FIRST[kind])
        return ways

    def _reached(self, peer: str, ways: Ways, way: Way, failed: dict[Way, Unreachable]) -> None:
        """The transfer went by this way. A peer that no way reaches has gone, which says nothing about the ways."""
        ways.welcome(way)
        for worse, error in failed.items():
            ways.shun(worse)
            self._fallbacks[worse.kind] += 1
            _log.warning("transfers with %s go by %s, as %s cannot connect: %s", peer, way.kind, worse.kind, error)


def _nixl(host: str, nics: NicPair, deadline_s: float, key: bytes | None) -> Transport:
    """An endpoint for RDMA; ConfigError says why there cannot be one."""
    if not rdma_ports(host):
        raise ConfigError(f"no active RDMA port behind the address {host}")
    from dualpath.transport.nixl import NixlTransport  # only where it is of use: it loads UCX

    return NixlTransport(host, nics=nics, deadline_s=deadline_s, key=key)


def rdma_ports(host: str) -> list[Path]:
    """Active RDMA ports of the network interface with this address; ConfigError when none has it."""
    states = (_NETWORK_CLASS / interface_of(host) / "device" / "infiniband").glob("*/ports/*/state")
    return [state.parent for state in states if "ACTIVE" in state.read_text()]
