"""From the operator's word for a store to the store."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dualpath.core.errors import ConfigError
from dualpath.core.layout import BlockLayout
from dualpath.store.base import Store
from dualpath.store.memory import MemoryStore
from dualpath.store.posix import PosixStore

_SUPPORTED = "give a folder (/data/kv), a file URL (file:///data/kv) or memory: (one process, for trials)"


def open_store(url_or_path: str, layout: BlockLayout, *, workers: int = 8, sync: bool = False) -> Store:
    """The store that the text names, its open() not yet awaited; ConfigError when there is no such kind.

    `workers` and `sync` are PosixStore's.
    """
    if url_or_path == "memory:":
        return MemoryStore(layout)
    return PosixStore(_folder_of(url_or_path), layout, workers=workers, sync=sync)


def _folder_of(url_or_path: str) -> Path:
    if not url_or_path.strip():
        raise ConfigError(f"no store named: {_SUPPORTED}")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url_or_path):
        return Path(url_or_path).expanduser()
    url = urlsplit(url_or_path)
    if url.scheme != "file":
        raise ConfigError(f"no store of the kind {url.scheme}: ({url_or_path}); {_SUPPORTED}")
    if url.netloc not in ("", "localhost") or not url.path.startswith("/") or url.query or url.fragment:
        raise ConfigError(f"cannot read {url_or_path} as a file URL: write file:///absolute/folder")
    return Path(unquote(url.path))
