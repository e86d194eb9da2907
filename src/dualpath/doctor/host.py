"""Cores, memory and limits of this process, as the kernel and the control group grant them."""

import os
import platform
import re
import resource
from typing import NamedTuple

from dualpath.core.hostprofile import Finding
from dualpath.core.units import format_bytes
from dualpath.doctor.system import System

TOPIC = "host"
LEAST_OPEN_FILES = 4096
LEAST_SHM_BYTES = 1 << 30
LEAST_KERNEL = (5, 4)
NO_LIMIT = 1 << 60  # control groups of version 1 write such numbers for "none"


class Capacity(NamedTuple):
    """What this process may use."""

    cores: float
    memory_bytes: int
    shm_bytes: int


def capacity(system: System, allowed_cores: int, shm_bytes: int) -> Capacity:
    """Cores and memory within the control group; the arguments are this process's affinity and /dev/shm's free
    space.
    """
    quota = cpu_quota(system)
    available = kib(system.table("proc/meminfo").get("MemAvailable", ""))
    limit = memory_limit(system)
    cores = float(allowed_cores) if quota is None else min(quota, allowed_cores)
    return Capacity(cores, available if limit is None else min(limit, available), shm_bytes)


def cgroups(system: System, controller: str) -> list[str]:
    """Folders of this process's control group and of those above it, for both versions of the interface."""
    folders = []
    for line in system.text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top = "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = f"sys/fs/cgroup/{controller}"
        else:
            continue
        parts = [part for part in path.split("/") if part]
        folders += ["/".join([top, *parts[:count]]) for count in range(len(parts), -1, -1)]
    return folders


def cpu_quota(system: System) -> float | None:
    """Cores that the tightest control group grants; None without a limit."""
    quotas = []
    for folder in cgroups(system, "cpu"):
        fields = system.text(f"{folder}/cpu.max").split()
        if len(fields) != 2:
            fields = [system.text(f"{folder}/cpu.cfs_quota_us"), system.text(f"{folder}/cpu.cfs_period_us")]
        if all(field.isdecimal() for field in fields) and int(fields[1]):
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def memory_limit(system: System) -> int | None:
    """Bytes that the tightest control group still grants; None without a limit."""
    left = []
    for folder in cgroups(system, "memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):  # fmt: skip
            limit = system.number(f"{folder}/{limit_file}")
            if limit is not None and limit < NO_LIMIT:
                left.append(max(0, limit - (system.number(f"{folder}/{used_file}") or 0)))
    return min(left, default=None)


def kib(text: str) -> int:
    """Bytes of a value such as "16 kB" in /proc/meminfo; 0 when it is none."""
    match = re.fullmatch(r"(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def chosen(text: str) -> str:
    """The word in brackets: "always [madvise] never" gives madvise."""
    match = re.search(r"\[(\S+)\]", text)
    return match[1] if match else "unknown"


def host_findings(system: System) -> list[Finding]:
    """All findings of this topic."""
    return [
        kernel_finding(platform.release()),
        cores_finding(cpu_quota(system), len(os.sched_getaffinity(0)), os.cpu_count() or 1),
        memory_finding(system),
        shm_finding(shm_free_bytes()),
        memfd_finding(),
        memlock_finding(
            resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], rdma=bool(system.names("sys/class/infiniband"))
        ),
        open_files_finding(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        *page_findings(system),
    ]


def shm_free_bytes() -> int:
    """Free space of /dev/shm; 0 where there is none."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize


def kernel_finding(release: str) -> Finding:
    """Older kernels lack calls that doctor and transports use."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= LEAST_KERNEL:
        return Finding(TOPIC, "kernel", "ok", release)
    return Finding(TOPIC, "kernel", "warning", release, "run Linux {}.{} or later".format(*LEAST_KERNEL))


def cores_finding(quota: float | None, allowed: int, present: int) -> Finding:
    """A quota below the affinity stalls all threads at once, in the middle of a transfer."""
    value = f"{allowed} of {present} cores"
    if quota is None or quota >= allowed:
        return Finding(TOPIC, "cores", "ok", value)
    return Finding(
        TOPIC, "cores", "warning", f"{value}, quota {quota:g}",
        f"raise the control group's cpu.max: threads on {allowed} cores share {quota:g} cores' time and stall together",
    )  # fmt: skip


def memory_finding(system: System) -> Finding:
    """Memory for arenas."""
    table = system.table("proc/meminfo")
    total, available, limit = kib(table.get("MemTotal", "")), kib(table.get("MemAvailable", "")), memory_limit(system)
    value = f"{format_bytes(available)} available of {format_bytes(total)}"
    if limit is None or limit >= available:
        return Finding(TOPIC, "memory", "ok", value)
    mend = "arenas count against the control group: raise its memory.max, or give less to --arena"
    return Finding(TOPIC, "memory", "warning", f"{value}, {format_bytes(limit)} left in the control group", mend)


def shm_finding(free_bytes: int) -> Finding:
    """dualpath's arenas are memfds, which this does not bound; torch's and NCCL's shared memory is here."""
    if free_bytes >= LEAST_SHM_BYTES:
        return Finding(TOPIC, "/dev/shm", "ok", f"{format_bytes(free_bytes)} free")
    mend = "mount -o remount,size=50% /dev/shm (containers: --shm-size 8g); arenas do not need it, NCCL and torch do"
    return Finding(TOPIC, "/dev/shm", "warning" if free_bytes else "missing", f"{format_bytes(free_bytes)} free", mend)


def memfd_finding() -> Finding:
    """Arenas are sealed memfds."""
    try:
        fd = os.memfd_create("dualpath-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, 1 << 20)
        finally:
            os.close(fd)
    except OSError as error:
        mend = "let this process call memfd_create (seccomp profile, kernel 3.17): without it there is no arena"
        return Finding(TOPIC, "memfd", "missing", str(error.strerror), mend)
    return Finding(TOPIC, "memfd", "ok", "works")


def memlock_finding(limit: int, *, rdma: bool) -> Finding:
    """RDMA pins what it registers: the whole arena."""
    shown = "unlimited" if limit == resource.RLIM_INFINITY else format_bytes(limit)
    if limit == resource.RLIM_INFINITY or not rdma:
        return Finding(TOPIC, "locked memory", "ok", shown if rdma else f"{shown}; no RDMA device needs it")
    mend = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity): an RDMA device pins the whole arena"
    return Finding(TOPIC, "locked memory", "warning", shown, mend)


def open_files_finding(soft: int, hard: int) -> Finding:
    """Every connection, region and block under way holds a descriptor."""
    if soft == resource.RLIM_INFINITY or soft >= LEAST_OPEN_FILES:
        return Finding(TOPIC, "open files", "ok", "unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    mend = "raise ulimit -n to 65536: eight connections for each peer and lane, and a file for each read"
    return Finding(TOPIC, "open files", "warning", f"{soft} (hard limit {hard})", mend)


def page_findings(system: System) -> list[Finding]:
    """Huge pages, for information: dualpath works with any."""
    base = "sys/kernel/mm/transparent_hugepage"
    total = system.table("proc/meminfo").get("HugePages_Total", "0")
    shown = f"{chosen(system.text(f'{base}/enabled'))}, shared memory {chosen(system.text(f'{base}/shmem_enabled'))}"
    return [
        Finding(TOPIC, "transparent huge pages", "ok", shown),
        Finding(TOPIC, "reserved huge pages", "ok", total),
    ]
