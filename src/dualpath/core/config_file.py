"""Reading, writing and checking of a Config: strict, with messages that name the key and the mend."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from dualpath.core.address import is_address, is_loopback, tcp_host
from dualpath.core.config import CONTROL, Config, parse_topology
from dualpath.core.errors import ConfigError

RUN_DIR_BYTES = 70  # a unix socket's path may have 107; the longest name in run_dir needs the rest


def sections() -> list[msgspec.structs.FieldInfo]:
    """The sections of a Config whose values are flags too: all but the table of hosts."""
    return [field for field in msgspec.structs.fields(Config) if field.name != "hosts"]


def load_config(file: Path | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Defaults, then the file (TOML, or JSON by its name), then overrides by section; checked."""
    values = _read(file) if file else {}
    config = _convert(values, origin=str(file))
    if overrides:
        values = {name: {**values.get(name, {}), **overrides.get(name, {})} for name in {*values, *overrides}}
        config = _convert(values, origin="flags")
    check_config(config)
    return config


def save_config(config: Config, file: Path) -> None:
    """Write a config as the JSON that load_config reads; only the owner may read it, as it may hold a key."""
    file.touch(mode=0o600)
    file.chmod(0o600)  # it may have been there before
    file.write_bytes(msgspec.json.encode(config))


def check_config(config: Config) -> None:
    """What no single value's type can say; ConfigError with the mend."""
    parse_topology(config.cluster.topology)
    _check_storage(config)
    network = config.network
    if not is_loopback(network.host) and not network.api_key:
        raise ConfigError(
            f"network.host {network.host} is reachable from outside: set network.api_key, or use 127.0.0.1"
        )
    _check_scheduler(config)
    _check_hosts(config)
    if len(network.run_dir.encode()) > RUN_DIR_BYTES:
        raise ConfigError(f"network.run_dir {network.run_dir} is too long for unix sockets; choose a shorter path")
    if config.limits.lease_s < 2 * config.limits.heartbeat_s:
        raise ConfigError("limits.lease_s must be at least twice limits.heartbeat_s, or live roles would count as lost")


def _check_storage(config: Config) -> None:
    for name in ("snic_bytes_per_s", "cnic_bytes_per_s", "arena_bytes"):
        try:
            getattr(config, name)
        except ConfigError as error:
            raise ConfigError(f"storage.{name.split('_')[0]}: {error}") from None
    if config.arena_bytes <= 0:
        raise ConfigError("storage.arena must be positive; write for example 1GiB")
    for path in (config.storage.path, *(host.store for host in config.hosts.values())):
        check_store_path(path)
        if path == "memory:":
            raise ConfigError("storage.path memory: lives in one process, and a cluster is several; name a folder")


def check_store_path(path: str) -> None:
    """ConfigError, which does not quote it, if the store's URL carries what may be credentials."""
    if re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*:.*[@?#]", path):
        raise ConfigError(
            "the store's URL is only scheme://bucket/prefix: no user, password or query; "
            "credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and kin)"
        )


def _check_scheduler(config: Config) -> None:
    """Unix socket, loopback, or one machine's address with a key."""
    endpoint = config.network.scheduler
    if not endpoint or endpoint.startswith("ipc://"):
        return
    host = tcp_host(endpoint)
    if host is None or endpoint.endswith("*") or not (is_loopback(host) or is_address(host)):
        raise ConfigError(
            f"network.scheduler {endpoint!r} is no endpoint; write ipc:///path or tcp://ADDRESS:PORT with an IP address"
        )
    if not is_loopback(host) and not config.network.key_file:
        raise ConfigError(
            f"network.scheduler {endpoint} is reachable from other machines: set network.key_file, "
            "or use tcp://127.0.0.1:PORT"
        )


def _check_hosts(config: Config) -> None:
    """Several hosts need addresses that all can reach, the cluster's secret, and no memory shared between them."""
    for name, host in config.hosts.items():
        if name not in (CONTROL, *config.nodes):
            raise ConfigError(f"hosts.{name} is no node of {config.cluster.topology}, nor {CONTROL}")
        if not (is_loopback(host.address) or is_address(host.address)):
            raise ConfigError(f"hosts.{name}.address {host.address!r} is no IP address of one machine; write 10.0.0.7")
    remote = [name for name, host in config.hosts.items() if not is_loopback(host.address)]
    if remote:
        _check_remote(config, f"hosts.{remote[0]} is on another network address")


def _check_remote(config: Config, why: str) -> None:
    for name in (CONTROL, *config.nodes):
        if is_loopback(config.host_of(name).address):
            raise ConfigError(f"{why}, and cannot reach {name} on loopback: set hosts.{name}.address")
    if not config.network.key_file:
        raise ConfigError(f"{why}: set network.key_file, a file with the same secret on all hosts")
    host = tcp_host(config.network.scheduler)
    if host is None or is_loopback(host):
        raise ConfigError(f"{why}: set network.scheduler to tcp://ADDRESS:PORT with an address of {CONTROL}'s host")
    if config.storage.transport == "shm":
        raise ConfigError(f"{why}, and storage.transport shm stays within one machine: set auto, tcp or nixl")


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read config file {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"config file {file} is not valid {file.suffix[1:].upper() or 'TOML'}: {error}") from None


def _convert(values: Mapping[str, Any], *, origin: str) -> Config:
    known = {field.name: field.type for field in sections()}
    _check_names(values, [*known, "hosts"], where="", origin=origin)
    for section, content in values.items():
        if not isinstance(content, Mapping):
            raise ConfigError(f"{origin}: {section} is a section; write [{section}] and its values below it")
        if section in known:
            _check_names(content, list(known[section].__struct_fields__), where=f"{section}.", origin=origin)
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at $.")
        raise ConfigError(f"{origin}: {where}: {what[:1].lower()}{what[1:]}{_choices(where)}") from None


def _choices(where: str) -> str:
    """The values that a choice such as storage.transport has, for a message; else empty."""
    section, _, name = where.partition(".")
    if section == "hosts":
        return ""
    hints = get_type_hints(type(getattr(Config(), section)))
    choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
    return f"; write {' or '.join(choices)}" if choices else ""


def _check_names(names: Mapping[str, Any], known: list[str], *, where: str, origin: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            mend = f"did you mean {where}{near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{origin}: unknown key {where}{name}; {mend}")
