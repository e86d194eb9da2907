"""From the operator's word for a store to the store."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dualpath.core.config_file import check_store_path
from dualpath.core.errors import ConfigError
from dualpath.core.layout import BlockLayout
from dualpath.store.base import Store
from dualpath.store.memory import MemoryStore
from dualpath.store.posix import PosixStore

_SUPPORTED = (
    "give a folder (/data/kv), a file URL (file:///data/kv), a bucket (s3://bucket/prefix, gs://..., az://...) "
    "or memory: (one process, for trials)"
)
_BUCKETS = ("s3:", "gs:", "az:")


def open_store(
    url_or_path: str, layout: BlockLayout, *, workers: int = 8, sync: bool = False, page_cache: bool = True
) -> Store:
    """The store that the text names, its open() not yet awaited; ConfigError when there is no such kind.

    `workers` threads do the I/O; `sync` and `page_cache` are PosixStore's. Buckets take credentials, endpoint and
    region from the environment (AWS_ACCESS_KEY_ID and kin).
    """
    if url_or_path == "memory:":
        return MemoryStore(layout)
    if url_or_path.startswith(_BUCKETS):
        return _bucket_store(url_or_path, layout, workers)
    return PosixStore(_folder_of(url_or_path), layout, workers=workers, sync=sync, page_cache=page_cache)


def _bucket_store(url: str, layout: BlockLayout, workers: int) -> Store:
    check_store_path(url)
    try:
        from dualpath.store.object import ObjectStore
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise ConfigError("stores in buckets need obstore: pip install 'dualpath[object]'") from None
    return ObjectStore.from_url(url, layout, workers=workers)


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
