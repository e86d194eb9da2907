"""Blocks as objects in S3 and kin, Google Cloud Storage or Azure."""

import obstore.store

from dualpath.core.layout import BlockLayout
from dualpath.store.bucket import open_bucket
from dualpath.store.objects import BlockObjects
from dualpath.store.threaded import ThreadedStore

DEADLINE_S = 30.0


class ObjectStore(ThreadedStore):
    """One layout's blocks in a bucket, which several processes of several hosts may use at once.

    `workers` operations run at once, each on a connection of its own, and blocks of more than one part on several.
    A service that is dead or stalls is told within `deadline_s`.
    """

    def __init__(
        self, bucket: obstore.store.ObjectStore, layout: BlockLayout, *, name: str, workers: int = 8,
        deadline_s: float = DEADLINE_S,
    ) -> None:  # fmt: skip
        objects = BlockObjects(bucket, name, layout, deadline_s=deadline_s)
        super().__init__(objects, layout, name=name, workers=workers)
        self.bucket = bucket

    @classmethod
    def from_url(
        cls, url: str, layout: BlockLayout, *, workers: int = 8, deadline_s: float = DEADLINE_S
    ) -> "ObjectStore":
        """The store at s3://bucket/prefix, gs:// or az://; ConfigError if the URL cannot be read."""
        return cls(open_bucket(url, deadline_s=deadline_s), layout, name=url, workers=workers, deadline_s=deadline_s)
