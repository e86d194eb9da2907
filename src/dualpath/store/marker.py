"""What stores write beside blocks, and how they read it: the format version of a root, the layout of a namespace.

root/store.json                         format version of the root
root/<layout fingerprint>/layout.json   the layout, for people
"""

import re

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.keys import KEY_BYTES
from dualpath.core.layout import BlockLayout
from dualpath.store.format import FORMAT_VERSION

ROOT_MARKER = "store.json"
LAYOUT_MARKER = "layout.json"
_NAMESPACE = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")


class _Root(msgspec.Struct, frozen=True):
    format_version: int


def root_marker() -> bytes:
    """Content of ROOT_MARKER."""
    return msgspec.json.encode(_Root(FORMAT_VERSION))


def layout_marker(layout: BlockLayout) -> bytes:
    """Content of LAYOUT_MARKER."""
    return msgspec.json.encode(layout)


def check_root_marker(content: bytes, root: str) -> None:
    """ConfigError unless this version may use the root with this ROOT_MARKER."""
    try:
        version = msgspec.json.decode(content, type=_Root).format_version
    except msgspec.DecodeError as error:
        raise ConfigError(f"{root}/{ROOT_MARKER} is damaged ({error}): delete it, or choose another folder") from None
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{root} was written by a newer dualpath (format {version}, this one knows {FORMAT_VERSION}): "
            "upgrade this one or choose another folder"
        )


def describe_blocks(count: int, namespace: str, marker: bytes | None) -> str:
    """A line for people: so many blocks of the layout that `marker` (None: it is lost) describes."""
    try:
        layout = msgspec.json.decode(marker or b"", type=BlockLayout)
    except msgspec.DecodeError:
        return f"{count} blocks of an unknown layout ({namespace})"
    return f"{count} blocks of model {layout.model}, {layout.dtype}, {layout.block_tokens} tokens a block ({namespace})"


def is_namespace(name: str) -> bool:
    """Whether this names a namespace: a layout's fingerprint."""
    return _NAMESPACE.fullmatch(name) is not None


def key_of(folder: str, name: str) -> bytes | None:
    """The key of the object `name` in the fan-out folder of its first byte; None: something else lies there."""
    return bytes.fromhex(name) if _KEY.fullmatch(name) and name.startswith(folder) and len(folder) == 2 else None
