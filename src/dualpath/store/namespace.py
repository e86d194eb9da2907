"""A root folder and the namespaces in it, one a layout. Functions block: BlockFolder calls them.

root/store.json               format version of the root
root/<layout fingerprint>/    namespace
    layout.json               the layout, for people
    incoming/                 objects that are being written
    00/ .. ff/                objects, by the first byte of their key
"""

import errno
import os
import secrets
from pathlib import Path

from dualpath.core.errors import ConfigError, StoreUnavailable
from dualpath.core.layout import BlockLayout
from dualpath.store import marker
from dualpath.store.oserrors import explain, unavailable

FAN_OUT = tuple(f"{first:02x}" for first in range(256))
INCOMING = "incoming"
LEFTOVER_S = 3600  # a temporary object that nobody touched for so long belongs to a process that died
_OPERATOR_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}


def folder_of(root: Path, layout: BlockLayout) -> Path:
    """The namespace of a layout."""
    return root / layout.fingerprint().hex()


def prepare(root: Path, layout: BlockLayout) -> None:
    """Make and check root and namespace, sweep old leftovers.

    ConfigError: a file in the way, not writable, or of a newer version. StoreUnavailable: any other error.
    """
    namespace = folder_of(root, layout)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_version(root)
        for folder in (INCOMING, *FAN_OUT):
            (namespace / folder).mkdir(parents=True, exist_ok=True)
        _place(root / marker.ROOT_MARKER, marker.root_marker(), namespace / INCOMING)
        _place(namespace / marker.LAYOUT_MARKER, marker.layout_marker(layout), namespace / INCOMING)
        _sweep(namespace / INCOMING)
    except OSError as error:
        message = f"cannot use {root} as a store: {explain(error)}"
        raise (ConfigError if error.errno in _OPERATOR_ERRORS else StoreUnavailable)(message) from error


def other_layouts(root: Path, layout: BlockLayout) -> list[str]:
    """One line for every other layout that has blocks under this root: whose they are and how many."""
    own = folder_of(root, layout)
    with unavailable("list", root):
        namespaces = sorted(path for path in root.iterdir() if marker.is_namespace(path.name))
        counts = {path: _count_blocks(path) for path in namespaces if path != own}
        return [
            marker.describe_blocks(count, path.name, _read(path / marker.LAYOUT_MARKER))
            for path, count in counts.items()
            if count
        ]


def _check_version(root: Path) -> None:
    content = _read(root / marker.ROOT_MARKER)
    if content is not None:
        marker.check_root_marker(content, str(root))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _place(path: Path, content: bytes, incoming: Path) -> None:
    """Write a small file, whole or not at all. It always writes to `incoming`: so we learn whether we may."""
    temporary = incoming / f"{path.name}.{secrets.token_hex(8)}"
    try:
        temporary.write_bytes(content)
        if not path.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(incoming: Path) -> None:
    """Remove what dead processes left half-written; younger files may belong to a living neighbour."""
    clock = incoming / f"clock.{secrets.token_hex(8)}"
    clock.touch()  # the file server's idea of now, as the ages are its too
    now_s = clock.stat().st_mtime
    clock.unlink()
    for entry in os.scandir(incoming):
        try:
            if now_s - entry.stat().st_mtime > LEFTOVER_S:
                os.unlink(entry.path)
        except FileNotFoundError:  # its writer finished, or a neighbour swept it
            continue


def _count_blocks(namespace: Path) -> int:
    folders = (namespace / folder for folder in FAN_OUT)
    return sum(len(os.listdir(folder)) for folder in folders if folder.is_dir())
