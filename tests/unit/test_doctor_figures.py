"""Recommendations, advice, and the profile that carries them."""

from pathlib import Path

import msgspec
import pytest

from dualpath.core.errors import ConfigError
from dualpath.core.hostprofile import (
    Finding,
    HostProfile,
    Link,
    MemoryRates,
    ReadRate,
    RoundTrip,
    Storage,
    TransferRate,
    load_host_profile,
)
from dualpath.doctor import advice
from dualpath.doctor.link import link_ratio
from dualpath.doctor.posix_reads import CACHED, DIRECT, DROPPED
from dualpath.doctor.reads import Pass, best_concurrency, ratio, typical
from dualpath.doctor.show import changes
from dualpath.node.main import profiled_read_rate


def storage(how: str = DROPPED, ours: tuple[float, ...] = (50, 95, 100), bare: float = 100) -> Storage:
    reads = [ReadRate("store", how, 2**index, rate) for index, rate in enumerate(ours)]
    reads += [ReadRate("bare", how, 4, bare), ReadRate("bare", DIRECT, 4, 300)]
    rates = {read.concurrency: read.bytes_per_s for read in reads if read.reader == "store"}
    best = best_concurrency(rates)
    return Storage("ext4", 4096, rates[best], how, best, reads)


def link(ours: float = 90, bare: float = 100, push: float = 90) -> Link:
    rates = [
        TransferRate("blocks", "fetch", 1, ours), TransferRate("raw", "fetch", 1, bare),
        TransferRate("blocks", "push", 1, push), TransferRate("raw", "push", 1, bare),
    ]  # fmt: skip
    return Link("tcp://10.0.0.2:1", "tcp", "network", 4096, max(ours, push), [RoundTrip("raw", 10, 20)], rates)


def profile(**changed: object) -> HostProfile:
    whole = HostProfile(
        dualpath_version="1", host="h", measured_at="2026-01-01T00:00:00+00:00", cores=1.5, memory_bytes=1, shm_bytes=2,
        memory=MemoryRates(1, 2, 3), storage=storage(), links=[link()],
        findings=[Finding("host", "x", "warning", "v", "mend")],
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changed)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 100.0, 2: 100.0, 4: 104.0}, 1),
        ({1: 50.0, 2: 94.9, 4: 95.0, 8: 100.0}, 4),
        ({1: 10.0, 16: 100.0, 8: 99.0}, 8),
        ({1: 1.0}, 1),
    ],
)
def test_the_smallest_concurrency_near_the_best_is_recommended(rates: dict[int, float], best: int) -> None:
    assert best_concurrency(rates) == best


def test_a_pass_that_was_disturbed_does_not_count() -> None:
    assert typical([Pass(100, 1), Pass(100, 50), Pass(110, 1)]) == 100


def test_ratios_are_of_equal_footing_only() -> None:
    assert ratio(storage().reads, DROPPED) == 1.0
    assert ratio(storage().reads, DIRECT) is None  # the store never reads past the page cache


def test_a_link_is_judged_by_its_worse_direction() -> None:
    assert link_ratio(link(ours=90, push=40).rates) == pytest.approx(0.4)
    assert advice.link_finding(link(push=40)).status == "warning"
    assert advice.link_finding(link()).status == "ok"


def test_figures_of_the_page_cache_are_never_ok() -> None:
    assert advice.storage_findings(storage(), 4)[0].status == "ok"
    cached = advice.storage_findings(storage(how=CACHED), 4)[0]
    assert (cached.status, CACHED in cached.value) == ("warning", True)


def test_a_better_read_concurrency_is_named_for_agents() -> None:
    enough, low = (advice.storage_findings(storage(), used)[1] for used in (4, 1))
    assert enough.status == "ok"
    assert low.mend.startswith("set storage.read_concurrency = 2")


def test_slow_checks_are_named() -> None:
    assert [each.status for each in advice.storage_findings(storage(bare=200), 4)] == ["ok", "ok", "warning"]


def test_changes_list_every_mend() -> None:
    assert changes(profile().findings) == ["What to change:", "- x (v): mend"]
    assert changes([]) == ["Nothing to change."]


def test_the_profile_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    for each in (profile(), profile(storage=None, memory=None, links=[])):
        file.write_bytes(msgspec.json.encode(each))
        assert load_host_profile(str(file)) == each


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no host profile"),
        (b"\xff\xfe", "no host profile"),
        (b'{"cores": 1}', "no host profile"),
        (msgspec.json.encode(profile(profile_version=99)), "version 99, this dualpath reads 1"),
    ],
)
def test_other_files_are_refused_in_plain_words(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_host_profile(str(file))
    with pytest.raises(ConfigError, match="cannot read the host profile"):
        load_host_profile(str(tmp_path / "nowhere.json"))


def test_agents_take_the_read_rate_from_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(msgspec.json.encode(profile()))
    assert profiled_read_rate(str(file)) == 95
    assert profiled_read_rate("") is None
    file.write_bytes(msgspec.json.encode(profile(storage=None)))
    with pytest.raises(ConfigError, match="no read rate"):
        profiled_read_rate(str(file))
