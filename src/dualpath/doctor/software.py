"""Optional parts that are installed, and GPUs. Nothing is imported: looking must not start CUDA or UCX."""

import shutil
from importlib.util import find_spec

from dualpath.core.hostprofile import Finding
from dualpath.doctor.system import System

TOPIC = "software"


def software_findings(system: System) -> list[Finding]:
    """All findings of this topic."""
    return [
        module_finding("obstore", "obstore", "pip install 'dualpath[object]'", "for stores in buckets"),
        module_finding(
            "NIXL",
            "nixl_cu12",
            "pip install --no-deps nixl-cu12",
            "for RDMA; else TCP",
        ),
        gpu_finding(system, tool=shutil.which("nvidia-smi") is not None),
    ]


def module_finding(name: str, module: str, command: str, use: str) -> Finding:
    """Whether Python could import a module; `command` installs it."""
    if find_spec(module) is not None:
        return Finding(TOPIC, name, "ok", "installed")
    return Finding(TOPIC, name, "missing", "not installed", f"{command}: {use}")


def gpu_finding(system: System, *, tool: bool) -> Finding:
    """CUDA devices by their driver's files; `tool` tells whether nvidia-smi is there."""
    devices = system.names("proc/driver/nvidia/gpus")
    if not devices:
        value = "nvidia-smi is there, but the driver shows no device" if tool else "none"
        return Finding(
            TOPIC, "CUDA devices", "missing", value, "load NVIDIA's driver, or let engines compute on the CPU"
        )
    if not (system.exists("sys/module/nvidia_peermem") or system.exists("sys/module/nv_peer_mem")):
        mend = "modprobe nvidia_peermem, unless the NIC's driver uses dma-buf: RDMA to GPU memory needs one of them"
        return Finding(TOPIC, "CUDA devices", "warning", f"{len(devices)}, without peer memory", mend)
    return Finding(TOPIC, "CUDA devices", "ok", str(len(devices)))
