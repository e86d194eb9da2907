"""The qos command: lanes on real fabrics."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dualpath.core.errors import ConfigError
from dualpath.core.units import parse_rate
from dualpath.qos.ethernet import KV_SHARE
from dualpath.qos.fabric import Fabric

if TYPE_CHECKING:
    from dualpath.qos.bursts import Contrast
    from dualpath.qos.finding import Finding

CHECK_SECONDS = 8.0


def qos(
    fabric: Annotated[Fabric, typer.Option(help="What carries the compute network.")] = Fabric.ETHERNET,
    device: Annotated[
        str, typer.Option(help="RDMA device, network interface, or both: mlx5_0, eth0 or mlx5_0:eth0.")
    ] = "",
    rate: Annotated[str, typer.Option(help="Rate of the line. Default: 400Gbit/s; for --check: as found.")] = "",
    kv_share: Annotated[float, typer.Option(help="Part of the line guaranteed to KV traffic.")] = KV_SHARE,
    format: Annotated[Literal["text", "shell"], typer.Option(help="To read, or as a script.")] = "text",
    check: Annotated[bool, typer.Option("--check", help="Test what this host has; exit 1 unless all is well.")] = False,
    peer: Annotated[str, typer.Option(help="HOST:PORT of a `dualpath qos --serve`, to measure with.")] = "",
    serve: Annotated[bool, typer.Option("--serve", help="Answer the measurements of other hosts.")] = False,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0: a free one.", min=0, max=65535)] = 0,
    seconds: Annotated[
        float | None, typer.Option(help="Measure or serve for so long. Default: 8, or 600 to serve.", min=0.1)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the findings of --check.")] = None,
) -> None:
    """Print how switches and hosts keep model traffic before KV traffic, and check whether they do.

    Without --check or --serve: opensm options, DSCP and PFC maps or tc commands for the fabric, and the environment for
    NCCL, UCX, NVSHMEM and NIXL. Changes nothing.
    """
    if check and serve:
        raise ConfigError("--check and --serve are two ends of a measurement; run them on two hosts")
    if serve:
        _serve(host, port, seconds)
        return
    rdma, netdev = _devices(fabric, device)
    if not check:
        _describe(fabric, rdma, netdev, rate, kv_share, format)
        return
    from dualpath.qos.check import check_by_measurement, check_host
    from dualpath.qos.finding import all_ok

    wanted = _bit_rate(rate) if rate else None
    findings = check_host(fabric, rdma, netdev, rate_bits_per_s=wanted, kv_share=kv_share)
    contrast = None
    if peer:
        measured, contrast = check_by_measurement(fabric, netdev, _peer(peer), seconds or CHECK_SECONDS)
        findings += measured
    _show(findings)
    if not peer:
        print("not measured: start `dualpath qos --serve --host ADDRESS` on another host and name it with --peer")
    if json:
        _write(json, findings, contrast)
    if not all_ok(findings):
        raise typer.Exit(1)


def _describe(fabric: Fabric, rdma: str, netdev: str, rate: str, kv_share: float, format: str) -> None:
    from dualpath.qos.describe import describe
    from dualpath.qos.section import as_shell, as_text

    found = describe(fabric, rdma, netdev, _bit_rate(rate or "400Gbit/s"), kv_share)
    print((as_shell if format == "shell" else as_text)(found), end="")


def _devices(fabric: Fabric, device: str) -> tuple[str, str]:
    """RDMA device and network interface."""
    first, _, second = device.partition(":")
    if fabric is Fabric.ETHERNET:
        return "", second or first or "eth0"
    return first or "mlx5_0", second or "eth0"


def _bit_rate(text: str) -> int:
    bytes_per_s = parse_rate(text)
    if bytes_per_s is None:
        raise ConfigError(f"--rate {text}: a line has a rate; write for example 800Mbit/s")
    return bytes_per_s * 8


def _peer(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"cannot read --peer {text!r}; write for example 10.0.0.2:9100")
    return host.strip("[]"), int(port)


def _serve(host: str, port: int, seconds: float | None) -> None:
    from dualpath.launch.signals import end_like_ctrl_c
    from dualpath.qos.server import DEFAULT_SECONDS, BurstServer

    end_like_ctrl_c()
    limit = seconds or DEFAULT_SECONDS
    server = BurstServer(host, port, seconds=limit)
    print(f"serving on {server.address[0]}:{server.address[1]} for {limit:g} s", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        server.close()


def _show(findings: "list[Finding]") -> None:
    for finding in findings:
        print(f"{finding.verdict:8} {finding.subject}: {finding.found}")
        if finding.mend:
            print(f"         {finding.mend}")


def _write(file: Path, findings: "list[Finding]", contrast: "Contrast | None") -> None:
    import msgspec

    content = {"findings": findings, "round_trips": contrast, "p99_ratio": contrast.p99_ratio if contrast else None}
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write --json {file}: {error.strerror}") from None
