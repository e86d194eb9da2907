"""The bytes of a stored block: fixed for ever, and refused with the right reason when they are wrong."""

import struct
import zlib

import msgspec
import pytest

from dualpath.core.errors import BlockCorrupt
from dualpath.core.layout import BlockLayout
from dualpath.store.format import HEADER_BYTES, BlockFormat

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
FORMAT = BlockFormat(LAYOUT)
KEY = bytes(range(16))
PAYLOAD = memoryview(bytes(range(64)))


def with_field(offset: int, value: bytes) -> bytes:
    """A header with another value and a right checksum, as another writer would make it."""
    header = FORMAT.header(KEY, PAYLOAD)
    fields = header[:offset] + value + header[offset + len(value) : 60]
    return fields + struct.pack("<I", zlib.crc32(fields))


def test_header_bytes_are_as_documented() -> None:
    header = FORMAT.header(KEY, PAYLOAD)
    assert len(header) == HEADER_BYTES == 64
    assert header[0:8] == b"DPBLOCK\x00"
    assert header[8:12] == b"\x01\x00\x00\x00"
    assert header[12:16] == zlib.crc32(PAYLOAD).to_bytes(4, "little")
    assert header[16:24] == (64).to_bytes(8, "little")
    assert header[24:40] == LAYOUT.fingerprint()
    assert header[40:56] == KEY
    assert header[56:60] == bytes(4)
    assert header[60:64] == zlib.crc32(header[:60]).to_bytes(4, "little")


def test_whole_block_passes() -> None:
    FORMAT.verify(KEY, FORMAT.header(KEY, PAYLOAD), PAYLOAD)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "cut off"),
        (bytes(64), "not a dualpath block"),
        (with_field(8, b"\x02"), "format version 2"),
        (with_field(24, bytes(16)), "another layout"),
        (with_field(40, bytes(16)), "holds the block 0000"),
        (with_field(16, b"\x01"), "names 1 payload"),
        (with_field(12, bytes(4)), "payload checksum"),
        (FORMAT.header(KEY, PAYLOAD)[:63] + b"\x00", "header checksum"),
    ],
)
def test_wrong_header_is_named(header: bytes, reason: str) -> None:
    with pytest.raises(BlockCorrupt, match=reason):
        FORMAT.verify(KEY, header, PAYLOAD)


def test_short_payload_is_named() -> None:
    with pytest.raises(BlockCorrupt, match="63 payload bytes"):
        FORMAT.verify(KEY, FORMAT.header(KEY, PAYLOAD), PAYLOAD[:63])


def test_every_layout_field_counts() -> None:
    for change in ({"model": "n"}, {"n_layers": 4, "block_tokens": 2}, {"dtype": "int32"}):
        other = BlockFormat(msgspec.structs.replace(LAYOUT, **change))
        with pytest.raises(BlockCorrupt, match="another layout"):
            FORMAT.verify(KEY, other.header(KEY, PAYLOAD), PAYLOAD)


def test_callers_memory_is_checked() -> None:
    strided = memoryview(bytearray(128))[::2]
    shaped = memoryview(bytearray(64)).cast("B", (2, 32))
    assert FORMAT.source(shaped).shape == (64,)
    for bad in (strided, PAYLOAD[:-1]):
        with pytest.raises(ValueError, match="64 contiguous bytes"):
            FORMAT.source(bad)
    with pytest.raises(ValueError, match="read-only"):
        FORMAT.target(PAYLOAD)
    with pytest.raises(ValueError, match="16 bytes"):
        FORMAT.check_key(b"short")
