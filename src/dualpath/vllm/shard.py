"""One worker's KV cache, cut into pages: what is copied between it and the memory shared with the agent."""

from collections.abc import Mapping

import torch

from dualpath.core.errors import ConfigError
from dualpath.vllm.step import Pairs, ShardShape


class KvShard:
    """The KV cache of one rank; a page is one vLLM block in one layer, as bytes."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], num_blocks: int) -> None:
        """`kv_caches`: vLLM's tensors by layer name, in the order in which the layers run."""
        distinct = {tensor.data_ptr(): name for name, tensor in reversed(list(kv_caches.items()))}
        self.layer_of = {name: i for i, name in enumerate(n for n in kv_caches if n in distinct.values())}
        self._layers = [_pages(kv_caches[name], num_blocks, name) for name in self.layer_of]
        first = next(iter(kv_caches.values()))
        page_bytes = sum(part.shape[1] for part in self._layers[0])
        self.shape = ShardShape(len(self._layers), page_bytes, _memory(first))
        if any(sum(part.shape[1] for part in layer) != page_bytes for layer in self._layers):
            raise ConfigError("layers have KV of different sizes; this model cannot be served with a store")

    def load(self, layer: int, outside: torch.Tensor, pairs: Pairs) -> None:
        """Copy pages into the cache. `outside`: [layer blocks, parts, page bytes] of this rank."""
        for part, pages in self._split(layer, outside):
            for place, number, block in zip(pairs.outside, pairs.part, pairs.blocks, strict=True):
                part[block].copy_(pages[place, number], non_blocking=True)
        self._wait()

    def save(self, layer: int, outside: torch.Tensor, pairs: Pairs) -> None:
        """Copy pages out of the cache; they are there when this returns."""
        for part, pages in self._split(layer, outside):
            for place, number, block in zip(pairs.outside, pairs.part, pairs.blocks, strict=True):
                pages[place, number].copy_(part[block], non_blocking=True)
        self._wait()

    def _split(self, layer: int, outside: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each part of the cache with its share of the pages outside."""
        parts = self._layers[layer]
        return list(zip(parts, outside.split([part.shape[1] for part in parts], dim=2), strict=True))

    def _wait(self) -> None:
        device = self._layers[0][0].device
        if device.type != "cpu":
            torch.accelerator.current_stream().synchronize()


def _pages(cache: torch.Tensor, num_blocks: int, name: str) -> list[torch.Tensor]:
    """Views [blocks, bytes] of a layer's cache: one, or two where K and V lie apart."""
    order = sorted(range(cache.dim()), key=cache.stride, reverse=True)
    physical = cache.permute(order)
    if not physical.is_contiguous():
        raise ConfigError(f"the KV cache of {name} is not contiguous; this attention backend is not supported")
    flat = physical.view(torch.uint8) if physical.element_size() == 1 else physical.reshape(-1).view(torch.uint8)
    if physical.shape[0] % num_blocks == 0:
        return [flat.reshape(num_blocks, -1)]
    if physical.dim() > 1 and physical.shape[0] == 2 and physical.shape[1] % num_blocks == 0:
        return list(flat.reshape(2, num_blocks, -1).unbind(0))
    raise ConfigError(f"no block dimension of {num_blocks} in the KV cache of {name}, {tuple(cache.shape)}")


def _memory(cache: torch.Tensor) -> str:
    """How a page lies: shape and order of its dimensions, dtype and kind of device; not the number of blocks."""
    shape = "x".join(map(str, cache.shape[1:]))
    strides = "x".join(map(str, cache.stride()[1:]))
    return f"{cache.device.type} {str(cache.dtype).removeprefix('torch.')} {shape}/{strides}"
