"""What the figures mean: findings about storage and links."""

from dualpath.core.hostprofile import Finding, Link, Storage
from dualpath.core.units import format_bytes
from dualpath.doctor.link import link_name, link_ratio
from dualpath.doctor.posix_reads import CACHED, DIRECT, DROPPED
from dualpath.doctor.reads import by_concurrency, ratio

LEAST_STORE_RATIO = 0.9
LEAST_LINK_RATIO = 0.8
STORAGE, NETWORK = "storage", "network"


def storage_findings(storage: Storage, read_concurrency: int) -> list[Finding]:
    """`read_concurrency` is what agents use unless told otherwise."""
    found = [_source_finding(storage), _concurrency_finding(storage, read_concurrency)]
    if storage.snic_how in (DROPPED, CACHED) and not by_concurrency(storage.reads, "bare", DIRECT):
        mend = "rely on the figures with dropped pages; for the device's own, choose a file system with O_DIRECT"
        found.append(Finding(STORAGE, "O_DIRECT", "missing", f"{storage.kind} refuses it, or is memory", mend))
    reached = ratio(storage.reads, storage.snic_how)
    if reached is not None:
        found.append(_ratio_finding(reached))
    return found


def _source_finding(storage: Storage) -> Finding:
    value = f"{format_bytes(storage.snic_read_bytes_per_s)}/s ({storage.snic_how}, {storage.kind})"
    if storage.snic_how != CACHED:
        return Finding(STORAGE, "read rate", "ok", value)
    mend = "measure on the real store: this rate is memory's, it says nothing of a storage NIC"
    return Finding(STORAGE, "read rate", "warning", value, mend)


def _concurrency_finding(storage: Storage, used: int) -> Finding:
    best = storage.read_concurrency
    rates = by_concurrency(storage.reads, "store", storage.snic_how)
    usual = max((rate for concurrency, rate in rates.items() if concurrency <= used), default=0.0)
    if usual >= 0.95 * rates[best]:
        return Finding(STORAGE, "reads at once", "ok", f"{best} suffice; agents use {used}")
    mend = f"set storage.read_concurrency = {best}: {used} reach {usual / rates[best]:.0%} of its rate"
    return Finding(STORAGE, "reads at once", "warning", f"best with {best}", mend)


def _ratio_finding(reached: float) -> Finding:
    value = f"{reached:.2f} of bare reads"
    if reached >= LEAST_STORE_RATIO:
        return Finding(STORAGE, "dualpath's reads", "ok", value)
    mend = "give agents more or faster cores: blocks are checked (CRC-32) as fast as they come, see the CRC rate"
    return Finding(STORAGE, "dualpath's reads", "warning", value, mend)


def link_finding(link: Link) -> Finding:
    """How the transport compares with a bare socket."""
    reached = link_ratio(link.rates)
    name, value = link_name(link), f"{reached:.2f} of a bare TCP socket"
    if reached >= LEAST_LINK_RATIO:
        return Finding(NETWORK, name, "ok", value)
    mend = "give both ends a core that is free for the agent: its event loop moves the bytes"
    return Finding(NETWORK, name, "warning", value, mend)


def unreachable_finding(peer: str, error: Exception) -> Finding:
    """A peer that could not be measured."""
    mend = f"on that host run dualpath doctor --serve, with the same --key-file, and let its ports through: {error}"
    return Finding(NETWORK, f"peer {peer}", "missing", "not measured", mend)


def no_storage_finding() -> Finding:
    """No store was named."""
    return Finding(STORAGE, "read rate", "missing", "not measured", "give --store, a folder or URL on the real storage")
