"""Peers' regions as mapped memory, and the copy between mapped memories."""

from collections.abc import Sequence

import numpy as np

from dualpath.core.errors import ProtocolError
from dualpath.transport.memory import SharedMemory
from dualpath.transport.regions import within
from dualpath.transport.wire import TransferRequest


class MappedRegions:
    """An endpoint's mappings of its peers' regions, each with the identity of the peer's registration."""

    def __init__(self) -> None:
        self._mapped: dict[str, dict[str, tuple[int, SharedMemory]]] = {}

    def identity(self, peer: str, region: str) -> int:
        """Identity of the registration that is mapped; 0 = none."""
        return self._mapped.get(peer, {}).get(region, (0, None))[0]

    def resolve(self, peer: str, request: TransferRequest, identity: int, fds: list[int]) -> memoryview:
        """The memory of the registration that the peer names: already mapped, or from the descriptor it sent.

        Takes that descriptor out of `fds` when it is used. ProtocolError when neither fits the request.
        """
        if fds and self.identity(peer, request.region) != identity:
            self._drop(peer, request.region)
            self._mapped.setdefault(peer, {})[request.region] = (identity, SharedMemory(fds.pop()))
        known, memory = self._mapped.get(peer, {}).get(request.region, (0, None))
        if memory is None or known != identity:
            raise ProtocolError("the peer granted a transfer but sent no memory to map")
        if not within(request.ranges, memory.size_bytes):
            raise ProtocolError("the peer granted ranges outside of the memory it sent")
        return memory.view[:]  # stays valid for this transfer when the mapping is replaced meanwhile

    def forget(self, peer: str) -> None:
        """Unmap all that belongs to a peer."""
        for region in list(self._mapped.get(peer, ())):
            self._drop(peer, region)
        self._mapped.pop(peer, None)

    def clear(self) -> None:
        """Unmap everything."""
        for peer in list(self._mapped):
            self.forget(peer)

    def _drop(self, peer: str, region: str) -> None:
        old = self._mapped[peer].pop(region, None) if peer in self._mapped else None
        if old:
            old[1].close()


def copy_views(source: Sequence[memoryview], into: Sequence[memoryview]) -> None:
    """Copy views that pair up with equal lengths."""
    for from_view, to_view in zip(source, into, strict=True):
        np.copyto(np.frombuffer(to_view, np.uint8), np.frombuffer(from_view, np.uint8))
