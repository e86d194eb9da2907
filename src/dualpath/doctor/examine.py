"""One run of doctor: everything that was asked for, in one profile."""

import datetime
import os
import socket

import msgspec

from dualpath import __version__
from dualpath.core.config import Storage as StorageConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.hostprofile import Finding, HostProfile, Link, Storage
from dualpath.doctor import advice
from dualpath.doctor.budget import Progress
from dualpath.doctor.host import capacity, host_findings, shm_free_bytes
from dualpath.doctor.interrupt import run
from dualpath.doctor.link import LinkTask, measure_link, most_block_bytes
from dualpath.doctor.loopback import HOST, serving_process
from dualpath.doctor.memory import memory_rates
from dualpath.doctor.network import network_findings
from dualpath.doctor.posix_reads import posix_storage
from dualpath.doctor.reads import CONCURRENCIES
from dualpath.doctor.scratch import scratch_layout
from dualpath.doctor.software import software_findings
from dualpath.doctor.system import System
from dualpath.store.memory import MemoryStore
from dualpath.store.open import open_store
from dualpath.store.posix import PosixStore

MEMORY_SHARE, STORAGE_SHARE, NETWORK_SHARE = 0.1, 0.5, 0.4  # of the time
LOOPBACK_KINDS = ("tcp", "shm")
LEAST_BLOCK_BYTES = 4096
_STARTS_S = 60  # for processes to start and slow links to overrun


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What to examine."""

    store: str  # folder or URL; empty: none
    block_bytes: int
    peers: list[str]  # addresses of serving doctors; empty: loopback
    transport: str
    host: str  # our own address
    key: bytes | None
    seconds: float

    def check(self) -> None:
        """ConfigError when this cannot be measured."""
        most = most_block_bytes()
        if not LEAST_BLOCK_BYTES <= self.block_bytes <= most:
            raise ConfigError(f"blocks of {self.block_bytes} bytes: give between {LEAST_BLOCK_BYTES} and {most}")
        for peer in self.peers:
            if ":" not in peer:
                raise ConfigError(f"{peer!r} is no address of a peer; give what its dualpath doctor --serve printed")


def examine(wanted: Examination, progress: Progress) -> HostProfile:
    """Look, then measure one thing after the other. ConfigError or StoreError when the store cannot be used."""
    wanted.check()
    system, cores = System(), len(os.sched_getaffinity(0))
    has = capacity(system, cores, shm_free_bytes())
    progress("looking around", 0)
    findings = [*host_findings(system), *network_findings(system), *software_findings(system)]
    progress("memory", MEMORY_SHARE)
    memory = memory_rates(cores, has.memory_bytes, MEMORY_SHARE * wanted.seconds)
    storage = _storage(wanted, progress)
    used = StorageConfig().read_concurrency
    findings += advice.storage_findings(storage, used) if storage else [advice.no_storage_finding()]
    links, link_findings = _links(wanted, progress)
    return HostProfile(
        dualpath_version=__version__, host=socket.gethostname(),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cores=has.cores, memory_bytes=has.memory_bytes, shm_bytes=has.shm_bytes,
        memory=memory, storage=storage, links=links, findings=findings + link_findings,
    )  # fmt: skip


def _storage(wanted: Examination, progress: Progress) -> Storage | None:
    if not wanted.store:
        return None
    layout = scratch_layout(wanted.block_bytes)
    store = open_store(wanted.store, layout, workers=CONCURRENCIES[-1], sync=True)  # synced: only clean pages can go
    seconds = STORAGE_SHARE * wanted.seconds

    def part(what: str, share: float) -> None:
        progress(what, share * STORAGE_SHARE)

    if isinstance(store, PosixStore):
        return posix_storage(store, seconds, part)
    if isinstance(store, MemoryStore):
        raise ConfigError(f"doctor cannot measure the store {wanted.store}: give a folder or a bucket's URL")
    from dualpath.doctor.object_reads import object_storage  # needs obstore, which open_store has found
    from dualpath.store.object import ObjectStore

    assert isinstance(store, ObjectStore)
    return object_storage(store, seconds, part)


def _links(wanted: Examination, progress: Progress) -> tuple[list[Link], list[Finding]]:
    """The ways to all peers; one that does not answer does not stop the others."""
    links: list[Link] = []
    findings: list[Finding] = []
    ways = wanted.peers or LOOPBACK_KINDS
    part = NETWORK_SHARE / len(ways)
    for way in ways:
        task = LinkTask(
            wanted.transport, wanted.host, way, wanted.key, "network", wanted.block_bytes, part * wanted.seconds
        )
        try:
            links.append(_link(task, bool(wanted.peers), lambda what, share: progress(what, share * part)))
        except ConfigError:
            raise
        except DualPathError as error:
            findings.append(advice.unreachable_finding(way, error))
        else:
            findings.append(advice.link_finding(links[-1]))
    return links, findings


def _link(task: LinkTask, to_peer: bool, progress: Progress) -> Link:
    """Measure to a peer, or to a process of our own that serves the transport that stands in the peer's place."""
    if to_peer:
        return run(measure_link(task, progress))
    with serving_process(task.peer, 3 * task.seconds + _STARTS_S) as address:
        own = task._replace(kind=task.peer, host=HOST, peer=address, key=None, how="loopback")
        return run(measure_link(own, progress))
