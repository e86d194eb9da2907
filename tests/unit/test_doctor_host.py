"""What doctor reads from the kernel's files, with folders in place of /proc and /sys."""

import resource
from pathlib import Path

import pytest

from dualpath.doctor import host, network, software
from dualpath.doctor.system import System

GIB = 1 << 30


def fake(root: Path, **files: str) -> System:
    """A system of these files; "__" stands for the slash."""
    for name, content in files.items():
        put(root, name.replace("__", "/"), content)
    return System(root)


def put(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_absent_files_are_empty_and_no_error(tmp_path: Path) -> None:
    system = System(tmp_path)
    assert (system.text("proc/none"), system.number("proc/none"), system.names("sys/none")) == ("", None, [])
    assert host.cpu_quota(system) is None
    assert host.memory_limit(system) is None


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    system = fake(tmp_path, proc__self__cgroup="0::/outer/inner\n")
    put(tmp_path, "sys/fs/cgroup/outer/cpu.max", "150000 100000")
    put(tmp_path, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000")
    put(tmp_path, "sys/fs/cgroup/outer/memory.max", str(4 * GIB))
    put(tmp_path, "sys/fs/cgroup/outer/memory.current", str(GIB))
    put(tmp_path, "sys/fs/cgroup/outer/inner/memory.max", "max")
    assert host.cpu_quota(system) == 1.5
    assert host.memory_limit(system) == 3 * GIB


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    system = fake(tmp_path, proc__self__cgroup="4:memory:/job\n3:cpu,cpuacct:/job\n")
    put(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000")
    put(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    put(tmp_path, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712")
    assert host.cpu_quota(system) == 0.5
    assert host.memory_limit(system) is None


def test_capacity_is_the_least_of_all_bounds(tmp_path: Path) -> None:
    system = fake(tmp_path, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert host.capacity(system, 6, 5) == (6.0, 4 * GIB, 5)


@pytest.mark.parametrize(
    ("finding", "status", "words"),
    [
        (host.cores_finding(None, 4, 8), "ok", ""),
        (host.cores_finding(1.5, 4, 8), "warning", "cpu.max"),
        (host.open_files_finding(1024, 4096), "warning", "ulimit -n to 65536"),
        (host.open_files_finding(resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
        (host.memlock_finding(65536, rdma=True), "warning", "ulimit -l unlimited"),
        (host.memlock_finding(65536, rdma=False), "ok", ""),
        (host.memlock_finding(resource.RLIM_INFINITY, rdma=True), "ok", ""),
        (host.shm_finding(64 << 20), "warning", "--shm-size"),
        (host.shm_finding(0), "missing", "--shm-size"),
        (host.kernel_finding("4.18.0-553.el8"), "warning", "5.4"),
        (host.kernel_finding("6.8.0-generic"), "ok", ""),
        (network.qdisc_finding(["htb", "pfifo"]), "ok", ""),
        (network.qdisc_finding(["pfifo"]), "missing", "modprobe -a sch_htb"),
        (network.qdisc_finding(None), "missing", "iproute2"),
        (software.module_finding("x", "no_such_module", "pip install x", "y"), "missing", "pip install x: y"),
        (software.module_finding("x", "json", "pip install x", "y"), "ok", ""),
    ],
)
def test_findings_name_the_mend_where_one_is_needed(finding: host.Finding, status: str, words: str) -> None:
    assert finding.status == status
    assert words in finding.mend
    assert bool(finding.mend) == (status != "ok")


def test_memory_of_a_tight_control_group_is_a_warning(tmp_path: Path) -> None:
    system = fake(tmp_path, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert host.memory_finding(system).status == "ok"
    put(tmp_path, "proc/self/cgroup", "0::/job")
    put(tmp_path, "sys/fs/cgroup/job/memory.max", str(GIB))
    assert "memory.max" in host.memory_finding(system).mend


def test_fast_nics_with_small_packets(tmp_path: Path) -> None:
    for name, speed, mtu in (("eth0", "100000", "1500"), ("eth1", "100000", "9000"), ("veth0", "-1", "1500")):
        for file, content in (("speed", speed), ("mtu", mtu), ("operstate", "up")):
            put(tmp_path, f"sys/class/net/{name}/{file}", content)
    put(tmp_path, "sys/class/net/lo/mtu", "65536")
    findings = {each.name: each for each in network.nic_findings(System(tmp_path))}
    assert {name: each.status for name, each in findings.items()} == {"eth0": "warning", "eth1": "ok", "veth0": "ok"}
    assert "mtu 9000" in findings["eth0"].mend
    assert "speed not told" in findings["veth0"].value


def test_no_nic_but_loopback_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/net/lo/mtu", "65536")
    assert [each.status for each in network.nic_findings(System(tmp_path))] == ["missing"]


def test_rdma_ports_by_their_state(tmp_path: Path) -> None:
    assert [each.status for each in network.rdma_findings(System(tmp_path))] == ["missing"]
    for device, state, layer in (("mlx5_0", "4: ACTIVE", "InfiniBand"), ("mlx5_1", "1: DOWN", "InfiniBand")):
        for file, content in (("state", state), ("link_layer", layer), ("rate", "400 Gb/sec (4X NDR)")):
            put(tmp_path, f"sys/class/infiniband/{device}/ports/1/{file}", content)
    up, down = network.rdma_findings(System(tmp_path))
    assert (up.name, up.status, down.status) == ("mlx5_0/1", "ok", "warning")
    assert "opensm" in down.mend


@pytest.mark.parametrize(
    ("text", "status"), [("4096 131072 33554432", "ok"), ("4096 16384 65536", "warning"), ("", "missing")]
)
def test_tcp_buffers(tmp_path: Path, text: str, status: str) -> None:
    put(tmp_path, "proc/sys/net/ipv4/tcp_rmem", text)
    assert network.buffer_finding(System(tmp_path), "tcp_rmem", "receive").status == status


def test_gpus_by_the_drivers_files(tmp_path: Path) -> None:
    assert software.gpu_finding(System(tmp_path), tool=True).value.startswith("nvidia-smi is there")
    put(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: X")
    assert "nvidia_peermem" in software.gpu_finding(System(tmp_path), tool=True).mend
    (tmp_path / "sys/module/nvidia_peermem").mkdir(parents=True)
    assert software.gpu_finding(System(tmp_path), tool=True).status == "ok"


def test_this_host_can_be_looked_at() -> None:
    system = System()
    findings = [*host.host_findings(system), *software.software_findings(system), *network.nic_findings(system)]
    assert all(bool(each.mend) == (each.status != "ok") for each in findings)
    assert host.capacity(system, 1, 0).memory_bytes > 0
