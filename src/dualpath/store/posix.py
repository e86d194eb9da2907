"""Blocks as files on a local or mounted file system."""

from pathlib import Path

from dualpath.core.layout import BlockLayout
from dualpath.store.folder import BlockFolder
from dualpath.store.threaded import ThreadedStore


class PosixStore(ThreadedStore):
    """One layout's blocks under `root`, which several processes, also of several hosts, may use at once.

    A written block is seen by all of them and survives any process's death. With `sync` it also survives
    power loss (fsync of file and folder, slow); without, blocks of the last seconds may then be absent or
    torn, which reads find. `workers` threads do the I/O. Without `page_cache` every read asks the file system.
    """

    def __init__(
        self, root: Path, layout: BlockLayout, *, workers: int = 8, sync: bool = False, page_cache: bool = True
    ) -> None:
        folder = BlockFolder(root, layout, sync=sync, page_cache=page_cache)
        super().__init__(folder, layout, name=str(root), workers=workers)
        self.root = root
