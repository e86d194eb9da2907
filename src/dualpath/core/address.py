"""Addresses of the control plane, as a configuration names them."""

import ipaddress
import re


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Whether `host` is one machine's IP address: no name, not the wildcard of all addresses."""
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def tcp_host(endpoint: str) -> str | None:
    """The host of a ZeroMQ endpoint tcp://HOST:PORT or tcp://[HOST]:PORT; None for any other text."""
    match = re.fullmatch(r"tcp://(\[[^\[\]]+\]|[^\[\]:]+):([0-9]{1,5}|\*)", endpoint)
    return match[1].strip("[]") if match and (match[2] == "*" or 0 < int(match[2]) < 2**16) else None


def tcp_endpoint(host: str, port: int | str) -> str:
    """tcp://HOST:PORT; the port may be ZeroMQ's "*", any free one."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
