"""Errors of the file system in plain words with their mend."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dualpath.core.errors import StoreUnavailable

_MENDS = {
    errno.ENOSPC: "the disk is full: free some space or choose a larger file system",
    errno.EDQUOT: "the disk quota is used up: raise it or free some space",
    errno.EACCES: "permission denied: let this user read and write there, or choose another folder",
    errno.EPERM: "not permitted: let this user read and write there, or choose another folder",
    errno.EROFS: "the file system is read-only: mount it writable or choose another folder",
    errno.EIO: "the device reports an I/O error: check the disk or mount and the kernel's log",
    errno.ESTALE: "the network file system lost the folder: mount it again",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENOENT: "the folder is gone: mount or restore it, then restart this process",
    errno.ENOTDIR: "a file is where a folder should be: move it away or choose another folder",
    errno.EEXIST: "a file is where a folder should be: move it away or choose another folder",
}


def explain(error: OSError) -> str:
    """What went wrong and how to mend it."""
    words = error.strerror or str(error)
    return _MENDS.get(error.errno or 0, f"{words}: check the disk or mount")


@contextmanager
def unavailable(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any OSError of the body into StoreUnavailable that says what was tried where."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"cannot {action} {os.fspath(path)}: {explain(error)}") from error
