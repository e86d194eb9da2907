"""Bytes of an object into memory as they arrive, resumed where a connection was lost."""

import random
import time
from collections.abc import Iterator

import obstore
from obstore.exceptions import BaseError

from dualpath.core.errors import BlockCorrupt
from dualpath.store.bucket import FIRST_BACKOFF_S, LONGEST_BACKOFF_S

CHUNK_BYTES = 1 << 20  # copied at once: while it is in the CPU's cache, others are on their way


class Download:
    """Part of an object: the bytes from `start` that fill `buffers`, one after the other.

    The library retries requests; but a connection that is lost within an answer ends it where the service
    gives no ETag. Then a new request, after a growing pause with jitter, asks for what is left, until `retry_s`
    after the start.
    """

    def __init__(
        self, bucket: obstore.store.ObjectStore, path: str, object_bytes: int, start: int, buffers: list[memoryview], *,
        retry_s: float,
    ) -> None:  # fmt: skip
        self._bucket = bucket
        self._path = path
        self._name = path.rpartition("/")[2]
        self._object_bytes = object_bytes
        self._at = start
        self._end = start + sum(map(len, buffers))
        self._buffers = buffers
        self._last_retry_s = time.monotonic() + retry_s

    def pieces(self) -> Iterator[memoryview]:
        """Fill the buffers; yields each part of them as it is filled, in order.

        BlockCorrupt when the object has another size, FileNotFoundError, and the library's errors.
        """
        backoff_s = FIRST_BACKOFF_S
        while self._at < self._end:
            chunks = self._request()
            try:
                for chunk in chunks:
                    yield from self._place(memoryview(chunk))
            except BaseError:
                pause_s = backoff_s * random.uniform(0.5, 1)
                if time.monotonic() + pause_s > self._last_retry_s:
                    raise
                time.sleep(pause_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    def finish(self) -> None:
        """Fill the buffers."""
        for _ in self.pieces():
            pass

    def _request(self) -> Iterator[bytes]:
        if self._at == 0 and self._end == self._object_bytes:
            result = obstore.get(self._bucket, self._path)
        else:
            result = self._request_range()
        self._check_size(result.meta["size"])
        return result.stream(min_chunk_size=CHUNK_BYTES)

    def _request_range(self) -> "obstore.GetResult":
        try:
            return obstore.get(self._bucket, self._path, options={"range": (self._at, self._end)})
        except BaseError as error:
            if "range" in str(error).lower():  # refused: does the object end before it begins?
                self._check_size(obstore.head(self._bucket, self._path)["size"])
            raise

    def _check_size(self, size: int) -> None:
        if size != self._object_bytes:
            raise BlockCorrupt(f"block {self._name}: its object has {size} bytes instead of {self._object_bytes}")

    def _place(self, chunk: memoryview) -> Iterator[memoryview]:
        if self._at + len(chunk) > self._end:
            raise BlockCorrupt(f"block {self._name}: the service sent more bytes than were asked for")
        self._at += len(chunk)
        while chunk:
            piece = self._buffers[0][: len(chunk)]
            piece[:] = chunk[: len(piece)]
            chunk = chunk[len(piece) :]
            self._buffers[0] = self._buffers[0][len(piece) :]
            if not self._buffers[0]:
                del self._buffers[0]
            yield piece
