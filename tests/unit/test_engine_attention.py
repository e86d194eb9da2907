import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.engine import attention
from dualpath.engine.attention import attend_one


def slow_attention(q: torch.Tensor, kv: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
    """Every query alone, every head alone, in double precision."""
    n, heads, _ = q.shape
    total, _, kv_heads, _ = kv.shape
    out = torch.zeros_like(q)
    for row in range(n):
        stop = total - n + row + 1
        start = 0 if window is None else max(0, stop - window)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            keys, values = kv[start:stop, 0, shared].double(), kv[start:stop, 1, shared].double()
            out[row, head] = torch.softmax(keys @ q[row, head].double() * scaling, 0) @ values
    return out


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    cached=st.integers(0, 20),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_equals_slow_attention(n: int, cached: int, kv_heads: int, group: int, window: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, kv_heads * group, 8, generator=generator)
    kv = torch.randn(cached + n, 2, kv_heads, 8, generator=generator)
    out = attend_one(q, kv, scaling=0.7, window=window)
    assert out.shape == q.shape
    torch.testing.assert_close(out, slow_attention(q, kv, 0.7, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 50])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    q, kv = torch.randn(40, 4, 16), torch.randn(60, 2, 2, 16)
    whole = attend_one(q, kv, scaling=0.25, window=window)
    monkeypatch.setattr(attention, "TILE_TOKENS", 7)
    torch.testing.assert_close(attend_one(q, kv, scaling=0.25, window=window), whole, atol=1e-5, rtol=1e-5)


def test_takes_a_layer_view_of_block_memory() -> None:
    blocks = torch.randn(3, 2, 4, 2, 2, 8)  # [blocks, layers, block_tokens, K and V, kv_heads, head_dim]
    layer = blocks[:, 1].reshape(12, 2, 2, 8)
    q = torch.randn(2, 2, 8)
    expected = slow_attention(q, layer, 1.0, None)
    torch.testing.assert_close(attend_one(q, layer, scaling=1.0), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [0, 5])
def test_refuses_queries_without_their_own_kv(n: int) -> None:
    with pytest.raises(ValueError, match="must end with"):
        attend_one(torch.randn(n, 2, 8), torch.randn(4, 2, 2, 8), scaling=1.0)
