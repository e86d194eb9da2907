"""The NIXL transport against the contract, and what is particular to it."""

from pathlib import Path

import pytest

from dualpath.testing.transport import TransportTests
from dualpath.transport.base import Transport
from dualpath.transport.nic import NicPair

pytest.importorskip("nixl_cu12", reason="NIXL is not installed: pip install --no-deps nixl-cu12==1.5.1")

from dualpath.transport.nixl import NixlTransport


class TestNixl(TransportTests):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        return NixlTransport(port=int(address.rpartition(":")[2] or 0), nics=nics, deadline_s=deadline_s)
