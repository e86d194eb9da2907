"""Causal attention of one request's newest tokens over its whole KV, straight from block-ordered memory."""

import torch
import torch.nn.functional as F

# Query rows that share one mask: bounds the mask to 256 x context and skips most of the upper triangle.
TILE_TOKENS = 256


def attend_one(q: torch.Tensor, kv: torch.Tensor, *, scaling: float, window: int | None = None) -> torch.Tensor:
    """Attention of the last n tokens over all tokens; returns `[n, heads, head_dim]`.

    `q` is `[n, heads, head_dim]`,
    `kv` is `[cached + n, 2 (K, V), kv_heads, head_dim]` as BlockLayout orders it (a
    view is enough, nothing is copied). Query heads share KV heads in groups. With `window` w a token sees
    itself and the w - 1 tokens before it.
    """
    n, total = q.shape[0], kv.shape[0]
    if not 0 < n <= total:
        raise ValueError(f"{n} queries over {total} tokens: kv must end with the queries' own tokens")
    if n == 1:
        return _attend_last(q, kv if window is None else kv[-window:], scaling)
    tiles = [
        _attend_tile(q[start : start + TILE_TOKENS], kv, total - n + start, scaling, window)
        for start in range(0, n, TILE_TOKENS)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _attend_last(q: torch.Tensor, kv: torch.Tensor, scaling: float) -> torch.Tensor:
    """Decode: one query sees all of `kv`, so no mask; a group's heads are the rows of one small matrix."""
    _, heads, head_dim = q.shape
    kv_heads = kv.shape[2]
    k, v = kv[:, 0].transpose(0, 1), kv[:, 1].transpose(0, 1)
    grouped = q.reshape(kv_heads, heads // kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped[None], k[None], v[None], scale=scaling)
    return out.reshape(1, heads, head_dim)


def _attend_tile(q: torch.Tensor, kv: torch.Tensor, position: int, scaling: float, window: int | None) -> torch.Tensor:
    """Queries at `position`, `position + 1`, ...: only keys that some of them may see are touched."""
    stop = position + q.shape[0]
    start = 0 if window is None else max(0, position - window + 1)
    key_at = torch.arange(start, stop, device=q.device)
    mask = causal_mask(torch.arange(position, stop, device=q.device), key_at, window)
    k, v = kv[start:stop, 0].transpose(0, 1), kv[start:stop, 1].transpose(0, 1)
    grouped = q.shape[1] != kv.shape[2]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, scale=scaling, enable_gqa=grouped
    )
    return out[0].transpose(0, 1)


def causal_mask(query_at: torch.Tensor, key_at: torch.Tensor, window: int | None) -> torch.Tensor:
    """Bool `[queries, keys]`: which key positions a query position may see."""
    distance = query_at[:, None] - key_at[None, :]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)
