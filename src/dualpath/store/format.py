"""The stored form of a block: a 64-byte header, then the payload; docs/design/block-format.md has the table.

Both checksums are CRC-32, the one of zlib: they find accidental damage (torn writes, flipped bits, swapped files)
at tens of GB/s (ISA-L) and without the GIL. They are no defence against somebody who may write to the store.
"""

import struct

from isal.isal_zlib import crc32

from dualpath.core.errors import BlockCorrupt
from dualpath.core.keys import KEY_BYTES, BlockKey
from dualpath.core.layout import BlockLayout

FORMAT_VERSION = 1
MAGIC = b"DPBLOCK\x00"
# magic, version, checksum of the payload, bytes of the payload, fingerprint of the layout, key, zeros
_FIELDS = struct.Struct("<8sIIQ16s16s4x")
_CHECKSUM = struct.Struct("<I")  # of all header bytes before it
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class BlockFormat:
    """Writes and checks headers for blocks of one layout, and checks what callers hand to its store."""

    def __init__(self, layout: BlockLayout) -> None:
        self.fingerprint = layout.fingerprint()
        self.block_bytes = layout.block_bytes
        self.object_bytes = HEADER_BYTES + layout.block_bytes

    def header(self, key: BlockKey, payload: memoryview) -> bytes:
        """The HEADER_BYTES that precede this payload on storage."""
        checksum = crc32(payload)
        fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, checksum, payload.nbytes, self.fingerprint, key)
        return fields + _CHECKSUM.pack(crc32(fields))

    def verify(self, key: BlockKey, header: bytes | bytearray, payload: memoryview) -> None:
        """BlockCorrupt with the reason unless these are header and whole payload of the block under `key`."""
        self.verify_checksum(key, header, payload.nbytes, crc32(payload))

    def verify_checksum(
        self, key: BlockKey, header: bytes | bytearray | memoryview, payload_bytes: int, checksum: int
    ) -> None:
        """Like verify, for a payload whose CRC-32 was taken while it came in."""
        expected = self._verify_header(key, header)
        if payload_bytes != self.block_bytes:
            raise BlockCorrupt(f"block {key.hex()}: {payload_bytes} payload bytes, not {self.block_bytes}")
        if checksum != expected:
            raise BlockCorrupt(f"block {key.hex()}: payload checksum does not match, its bytes were damaged")

    def check_key(self, key: BlockKey) -> None:
        """ValueError unless `key` has the length of a key."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, not {len(key)}")

    def source(self, block: memoryview) -> memoryview:
        """The caller's block as flat bytes; ValueError unless it is contiguous and exactly one block long."""
        if not block.c_contiguous or block.nbytes != self.block_bytes:
            raise ValueError(f"a block is {self.block_bytes} contiguous bytes, this memory has {block.nbytes}")
        return block.cast("B")

    def target(self, into: memoryview) -> memoryview:
        """Like source, for memory that is to be filled: ValueError also if it is read-only."""
        if into.readonly:
            raise ValueError("cannot read a block into read-only memory")
        return self.source(into)

    def _verify_header(self, key: BlockKey, header: bytes | bytearray | memoryview) -> int:
        """Check all of the header; returns the payload's checksum."""
        name = f"block {key.hex()}"
        if len(header) < HEADER_BYTES:
            raise BlockCorrupt(f"{name}: cut off within its header")
        magic, version, checksum, length, fingerprint, stored_key = _FIELDS.unpack_from(header)
        if magic != MAGIC:
            raise BlockCorrupt(f"{name}: not a dualpath block")
        if _CHECKSUM.unpack_from(header, _FIELDS.size)[0] != crc32(header[: _FIELDS.size]):
            raise BlockCorrupt(f"{name}: header checksum does not match, its bytes were damaged")
        if version != FORMAT_VERSION:
            raise BlockCorrupt(f"{name}: format version {version}, this dualpath reads {FORMAT_VERSION}")
        if fingerprint != self.fingerprint:
            raise BlockCorrupt(
                f"{name}: belongs to another layout ({fingerprint.hex()}, here {self.fingerprint.hex()}): "
                "other weights, dtype or tokens a block"
            )
        if stored_key != key:
            raise BlockCorrupt(f"{name}: holds the block {stored_key.hex()} instead")
        if length != self.block_bytes:
            raise BlockCorrupt(f"{name}: names {length} payload bytes, the layout has {self.block_bytes}")
        return int(checksum)
