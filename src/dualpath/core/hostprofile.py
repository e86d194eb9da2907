"""What a host offers, as `dualpath doctor` found it: agents, scheduler limits and the simulator start from it.

Units end the names. Every figure says how it was measured: one from the page cache or over loopback must never pass
for one of the disk or of a network.
"""

from pathlib import Path
from typing import Literal

import msgspec

from dualpath.core.errors import ConfigError

PROFILE_VERSION = 1
MAX_PROFILE_BYTES = 8 << 20

Status = Literal["ok", "warning", "missing"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; `mend` says what to change, empty where nothing needs it."""

    topic: str
    name: str
    status: Status
    value: str
    mend: str = ""


class MemoryRates(msgspec.Struct, frozen=True):
    """Rates within the host's memory. A copied byte counts once."""

    copy_bytes_per_s: float  # one thread
    copy_all_cores_bytes_per_s: float
    crc_bytes_per_s: float  # one thread; every block that is read pays it


class ReadRate(msgspec.Struct, frozen=True):
    """Whole blocks read at one concurrency."""

    reader: str  # "store" (dualpath's own) or "bare" (preadv, obstore)
    how: str  # "O_DIRECT", "page cache dropped by advice", "page cache", "object store"
    concurrency: int
    bytes_per_s: float


class Storage(msgspec.Struct, frozen=True):
    """What one store gave this host."""

    kind: str  # file system's type, or the URL's scheme
    block_bytes: int
    snic_read_bytes_per_s: float  # of dualpath's store, not from the page cache where that could be dropped
    snic_how: str  # the `how` of that figure
    read_concurrency: int  # recommended
    reads: list[ReadRate]


class TransferRate(msgspec.Struct, frozen=True):
    """Blocks of `block_bytes` moved between this host's memory and the peer's."""

    lane: str  # of the transport; "raw" is a bare TCP socket in the same run
    operation: Literal["fetch", "push"]
    concurrency: int
    bytes_per_s: float


class RoundTrip(msgspec.Struct, frozen=True):
    """Small fetches, one after the other, on a link that was otherwise idle."""

    lane: str
    p50_ns: int
    p99_ns: int


class Link(msgspec.Struct, frozen=True):
    """The way to one peer."""

    peer: str
    transport: str  # what carried the bytes: "tcp", "shm", "nixl"
    how: str  # "loopback" or "network"
    block_bytes: int
    cnic_bytes_per_s: float  # best fetch or push, over all lanes
    round_trips: list[RoundTrip]
    rates: list[TransferRate]


class HostProfile(msgspec.Struct, frozen=True, kw_only=True):
    """All findings and figures of one run. Parts that were not measured are None or empty."""

    profile_version: int = PROFILE_VERSION
    dualpath_version: str
    host: str
    measured_at: str  # ISO 8601, UTC
    cores: float  # that this process may use: affinity and cgroup quota
    memory_bytes: int  # that this process may take: available, within the cgroup's limit
    shm_bytes: int  # free in /dev/shm
    memory: MemoryRates | None = None
    storage: Storage | None = None
    links: list[Link] = []
    findings: list[Finding] = []


def load_host_profile(file: str) -> HostProfile:
    """The profile in `file`; ConfigError when it cannot be read or is of another version."""
    try:
        with Path(file).expanduser().open("rb") as stream:
            content = stream.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the host profile {file}: {error.strerror}") from None
    if len(content) > MAX_PROFILE_BYTES:
        raise ConfigError(f"the host profile {file} is too large: make one with dualpath doctor --json {file}")
    try:
        profile = msgspec.json.decode(content, type=HostProfile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no host profile ({error}): make one with dualpath doctor --json {file}") from None
    if profile.profile_version != PROFILE_VERSION:
        raise ConfigError(
            f"the host profile {file} has version {profile.profile_version}, this dualpath reads {PROFILE_VERSION}: "
            f"make it anew with dualpath doctor --json {file}"
        )
    return profile
