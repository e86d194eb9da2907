"""Content keys of blocks: a keyed hash chained over all that decides the block's bytes.

key_0 = H(layout fingerprint, tenant salt, adapter); key_{i+1} = H(key_i, tokens of block i). Blake2b, 16 bytes,
identical in every process and language. Tokens are hashed as little-endian uint32.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from dualpath.core.layout import BlockLayout

BlockKey = bytes  # 16 bytes
KEY_BYTES = 16


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32, the form they have on the wire and in hashes."""
    return np.asarray(tokens, dtype="<u4").tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """Inverse of pack_tokens."""
    return np.frombuffer(packed, dtype="<u4").tolist()


def fill_placeholders(tokens: Sequence[int], fillings: Sequence[tuple[int, int, str]]) -> Sequence[int]:
    """`tokens` for hashing: placeholders of images and their kin differ by what fills them.

    Fillings are (first token, tokens, hash of the content).
    """
    if not fillings:
        return tokens
    filled = list(tokens)
    for start, length, name in fillings:
        stop = min(start + length, len(filled))
        for at in range(start, stop):
            seed = f"{name}:{at - start}".encode()
            filled[at] = int.from_bytes(hashlib.blake2b(seed, digest_size=4, person=b"dualpath-filled").digest())
    return filled


def root_key(layout: BlockLayout, *, salt: bytes = b"", adapter: str = "") -> BlockKey:
    """The parent of every first block: separates models, layouts, tenants and adapters."""
    seed = hashlib.blake2b(digest_size=KEY_BYTES, person=b"dualpath-root")
    for part in (layout.fingerprint(), salt, adapter.encode()):
        seed.update(len(part).to_bytes(4, "little") + part)
    return seed.digest()


def child_key(parent: BlockKey, block_tokens: bytes) -> BlockKey:
    """Key of the block with packed `block_tokens` that follows `parent`."""
    return hashlib.blake2b(block_tokens, key=parent, digest_size=KEY_BYTES, person=b"dualpath-block").digest()


def chain_keys(root: BlockKey, packed: bytes, block_tokens: int) -> list[BlockKey]:
    """Keys of all full blocks of a packed token sequence, in order."""
    size = 4 * block_tokens
    keys: list[BlockKey] = []
    parent = root
    for start in range(0, len(packed) - size + 1, size):
        parent = child_key(parent, packed[start : start + size])
        keys.append(parent)
    return keys
