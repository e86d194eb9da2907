"""The shape of a KV block: what one slot of an arena and one object on storage hold (paper section 2)."""

import hashlib

import msgspec


class BlockLayout(msgspec.Struct, frozen=True):
    """A full block is `[n_layers, block_tokens, token_bytes]`; a layer block is one `[block_tokens, token_bytes]`.

    For the reference engine the bytes of a token in a layer are `[2 (K, V), kv_heads, head_dim]` in `dtype`.
    """

    model: str  # fingerprint of the weights: hex, or the operator's version string
    n_layers: int
    block_tokens: int
    token_bytes: int  # K and V of one token in one layer
    dtype: str  # "float32"; part of the fingerprint

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
