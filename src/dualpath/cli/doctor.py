"""The doctor command."""

from pathlib import Path
from typing import Annotated

import typer

from dualpath.core.errors import ConfigError, ServiceError
from dualpath.core.secret import cluster_key
from dualpath.core.units import parse_bytes

SERVE_SECONDS = 3600.0


def doctor(
    store: Annotated[str, typer.Option(help="Folder or URL of the store to measure; doctor cleans up.")] = "",
    block_bytes: Annotated[str, typer.Option(help="Size of the blocks to read and to move.")] = "512KiB",
    peer: Annotated[
        list[str] | None, typer.Option(help="Address that another host's doctor --serve printed; may be repeated.")
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="Address of a running gateway: prove by one probe that both paths work, and end.")
    ] = "",
    api_key: Annotated[str, typer.Option(help="For --cluster.", envvar="DUALPATH_API_KEY")] = "",
    serve: Annotated[bool, typer.Option("--serve", help="Be the peer that another host measures against.")] = False,
    host: Annotated[str, typer.Option(help="This host's address on the compute network.")] = "127.0.0.1",
    transport: Annotated[str, typer.Option(help="auto, tcp, shm or nixl.")] = "auto",
    key_file: Annotated[str, typer.Option(help="File with the cluster's secret; needed off loopback.")] = "",
    seconds: Annotated[
        float | None, typer.Option(help="Time for measuring (30), or for serving (3600).", min=1, max=86400)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the profile.")] = None,
) -> None:
    """Find and measure what this host offers, and say what to change.

    Storage rates are cold where storage allows it; figures from the page cache are called so. Without --peer the
    network is loopback.
    """
    if cluster:
        _probe(cluster, api_key)
        return
    key = cluster_key(key_file)
    from dualpath.launch.signals import end_like_ctrl_c

    end_like_ctrl_c()
    if serve:
        _serve(transport, host, key, seconds or SERVE_SECONDS)
        return
    from dualpath.doctor.examine import Examination, examine
    from dualpath.doctor.show import Bar, show

    wanted = Examination(
        store=store, block_bytes=parse_bytes(block_bytes), peers=peer or [], transport=transport, host=host, key=key,
        seconds=seconds or 30,
    )  # fmt: skip
    if json:
        _check_output(json)
    try:
        with Bar() as bar:
            profile = examine(wanted, bar.advance)
    except KeyboardInterrupt:
        raise ServiceError("ended before everything was measured; nothing is left behind") from None
    show(profile)
    if json:
        _write(json, profile)
    if len(profile.links) < len(wanted.peers):
        raise ServiceError("not every peer could be measured; see above")


def _probe(url: str, api_key: str) -> None:
    from dualpath.doctor.probe import probe
    from dualpath.doctor.show import show_probe

    show_probe(probe(url.rstrip("/"), api_key))


def _serve(transport: str, host: str, key: bytes | None, seconds: float) -> None:
    from dualpath.doctor.interrupt import run
    from dualpath.doctor.peer import serve

    try:
        run(serve(transport, host, key, seconds))
    except KeyboardInterrupt:
        return


def _check_output(file: Path) -> None:
    """Before minutes of measuring: ConfigError when the file's folder is not there, or the file is a folder."""
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {file}: give a file in a folder that exists")


def _write(file: Path, profile: object) -> None:
    import msgspec

    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
