"""Where transformers hands attention over to the engine: one function, one running forward a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

ATTENTION = "dualpath"


class LayerAttention(Protocol):
    """What an engine does in one layer of one forward: store the new KV, attend over all of it.

    `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]`, rows as in the
    forward's tokens, rope already applied; returns `[tokens, heads, head_dim]`. Called once a layer, layers in order.
    `scaling` and `window` (None: all) go to attend_one as they are.
    """

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        scaling: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """Store k and v of `layer` and return the attention's output."""
        ...


# transformers looks attention up in a global registry, so the running forward's callable is global too.
_running = threading.Lock()
_attend: LayerAttention | None = None


@contextmanager
def attending(attend: LayerAttention) -> Iterator[None]:
    """Make `attend` the attention of the forward inside; RuntimeError when another one runs already."""
    global _attend
    if not _running.acquire(blocking=False):
        raise RuntimeError("a forward is already running in this process; run forwards one after the other")
    _attend = attend
    try:
        yield
    finally:
        _attend = None
        _running.release()


def _layer_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None = None,
    scaling: float | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Called by the model's code in each layer; the probe at load found all other arguments harmless."""
    if _attend is None:
        raise RuntimeError("the model was called outside PackedModel.forward")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    factor = q.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(module.layer_idx, q, k, v, factor, sliding_window)[None], None


AttentionInterface.register(ATTENTION, _layer_attention)
