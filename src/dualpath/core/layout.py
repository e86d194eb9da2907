"""The shape of a KV block: what one slot of an arena and one object on storage hold (paper section 2)."""

import hashlib

import msgspec


class BlockLayout(msgspec.Struct, frozen=True, omit_defaults=True):
    """A full block is `n_layers` layer blocks of `block_tokens * token_bytes`.

    With an empty `memory` a layer block is `[block_tokens, token_bytes]`, and the bytes of a token in a layer are
    `[2 (K, V), kv_heads, head_dim]` in `dtype` (the reference engine). Otherwise it is opaque: the engine named how its
    bytes lie, and nobody else may cut a layer block.
    """

    model: str  # fingerprint of the weights: hex, or the operator's version string
    n_layers: int
    block_tokens: int
    token_bytes: int  # K and V of one token in one layer
    dtype: str  # "float32"; part of the fingerprint
    memory: str = ""  # how an opaque layer block lies in the engine's memory, tensor parallelism included

    @property
    def layer_block_bytes(self) -> int:
        """Bytes of one layer block."""
        return self.block_tokens * self.token_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one full block: the payload of a stored object and the size of an arena slot."""
        return self.n_layers * self.layer_block_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's KV over all layers."""
        return self.n_layers * self.token_bytes

    def fingerprint(self) -> bytes:
        """16 bytes that differ whenever any field differs; names the store's namespace and seeds the key chain."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=16, person=b"dualpath-layout").digest()

    def full_blocks(self, tokens: int) -> int:
        """Blocks that `tokens` fill completely."""
        return tokens // self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        """Slots that `tokens` need, the partial last block included."""
        return -(-tokens // self.block_tokens)
