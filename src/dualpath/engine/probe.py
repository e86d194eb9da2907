"""What a model asks of attention is honoured or refused when it is loaded, never ignored.

Three looks: its config, the arguments and masks of a recorded forward, and whether a prompt in chunks,
packed with a stranger, gives the same logits as the whole prompt alone. The last one catches what the first
two do not know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from dualpath.core.errors import ConfigError
from dualpath.core.model import ModelSpec
from dualpath.engine.attention import attend_one, causal_mask
from dualpath.engine.hook import LayerAttention

RECORD = "dualpath_record"
HARMLESS = {"position_ids", "cache_position", "position_embeddings"}  # whatever their value
LAYER_TYPES = {"full_attention", "sliding_attention"}
TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}  # of the largest logit

Forward = Callable[[Sequence[int], Sequence[int], LayerAttention, Sequence[int]], torch.Tensor]


class LayerCall(msgspec.Struct, frozen=True):
    """How a layer attends: factor on the scores, and how many tokens back it sees (None: all)."""

    scaling: float
    window: int | None


class Recorded(msgspec.Struct):
    """One attention call as transformers made it."""

    module: Any
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    arguments: dict[str, Any]


def refuse_config(config: PretrainedConfig, spec: ModelSpec) -> None:
    """ConfigError for kinds of models that the config already gives away, before any weight is read."""
    _refuse(spec, bool(config.is_encoder_decoder), "an encoder-decoder; only decoder-only models are served")
    _refuse(spec, bool(getattr(config, "kv_lora_rank", None)), "latent attention (MLA), which this engine has not")
    foreign = set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    _refuse(spec, bool(foreign), f"layers of type {sorted(foreign)}, whose state is no KV block")
    for kind in _rope_kinds(getattr(config, "rope_parameters", None)):
        moving = "dynamic" in kind or kind == "longrope"
        _refuse(spec, moving, f"rope type {kind!r}: a token's KV would depend on the longest request beside it")


def _rope_kinds(parameters: Any) -> list[str]:
    """All rope types of a config; models with several kinds of layers nest them one level deeper."""
    if not isinstance(parameters, dict):
        return []
    nested = [kind for inner in parameters.values() for kind in _rope_kinds(inner)]
    return [*nested, str(parameters.get("rope_type", "default"))]


def record_layers(run: Callable[[], object], spec: ModelSpec) -> tuple[LayerCall, ...]:
    """Layers' scaling and window, from one forward `run` with the model set to RECORD; else ConfigError."""
    _calls.clear()
    run()
    calls, layers = list(_calls), [int(call.module.layer_idx) for call in _calls]
    _calls.clear()
    wrong = layers != list(range(spec.layout.n_layers))
    _refuse(
        spec,
        wrong,
        f"attention in layers {layers} of {spec.layout.n_layers}; each must attend once, in order",
    )
    return tuple(_check_call(call, spec) for call in calls)


def _check_call(call: Recorded, spec: ModelSpec) -> LayerCall:
    """The call as this engine would do it, or ConfigError for the first thing that it could not honour."""
    arguments = {name: value for name, value in call.arguments.items() if value is not None and name not in HARMLESS}
    scaling = float(arguments.pop("scaling", spec.head_dim**-0.5))
    window = arguments.pop("sliding_window", None)
    causal = arguments.pop("is_causal", True) and getattr(call.module, "is_causal", True)
    _refuse(spec, not causal, "attention that is not causal")
    unknown = sorted(name for name, value in arguments.items() if not _is_off(value))
    _refuse(spec, bool(unknown), f"attention with {', '.join(unknown)}, which this engine has not")
    shapes = [tuple(part.shape[1::2]) for part in (call.q, call.k, call.v)]
    kv_shape = (spec.kv_heads, spec.head_dim)
    expected = [(spec.n_heads, spec.head_dim), kv_shape, kv_shape]
    _refuse(spec, shapes != expected, f"(heads, head_dim) {shapes} for q, k, v where config.json says {expected}")
    points = mask_points(call.module.config)
    visible = causal_mask(points, points, window)
    usual = call.mask is not None and torch.equal(call.mask.cpu(), visible)
    _refuse(spec, not usual, f"an attention mask that is not causal with window {window}")
    return LayerCall(scaling=scaling, window=window)


def _is_off(value: Any) -> bool:
    """Whether an argument asks for nothing: False, or 0 as in dropout=0.0."""
    return not isinstance(value, torch.Tensor) and value in (False, 0)


def _refuse(spec: ModelSpec, wrong: bool, why: str) -> None:
    if wrong:
        raise ConfigError(f"{spec.path} has {why}; serve another model")


class PlainKv:
    """KV of some requests in plain memory, in block order; the simplest thing that can attend."""

    def __init__(self) -> None:
        self.kv: dict[tuple[str, int], torch.Tensor] = {}

    def attend(self, counts: Sequence[tuple[str, int]]) -> LayerAttention:
        """Attention for one forward that packs the next `count` tokens of each request, in this order."""

        def attend_layer(
            layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
        ) -> torch.Tensor:  # fmt: skip
            new, out, start = torch.stack((k, v), dim=1), [], 0
            for request, count in counts:
                cached = self.kv.get((request, layer), new[:0])
                kv = torch.cat((cached, new[start : start + count]))
                self.kv[request, layer] = kv
                out.append(attend_one(q[start : start + count], kv, scaling=scaling, window=window))
                start += count
            return torch.cat(out)

        return attend_layer


def check_packing(forward: Forward, spec: ModelSpec) -> None:
    """ConfigError unless a chunk on cached KV, packed with another request, computes the same as all."""
    prompt, stranger = _probe_tokens(8, spec, seed=1), _probe_tokens(4, spec, seed=2)
    kv = PlainKv()
    whole = forward(prompt, range(8), kv.attend([("whole", 8)]), [5, 6, 7])
    forward(prompt[:5], range(5), kv.attend([("chunked", 5)]), [])
    packed = kv.attend([("stranger", 4), ("chunked", 3)])
    chunk = forward(stranger + prompt[5:], [*range(4), 5, 6, 7], packed, [4, 5, 6])
    shape = (3, spec.vocab_size)
    _refuse(
        spec,
        tuple(whole.shape) != shape,
        f"logits of shape {tuple(whole.shape)} where {shape} were asked for",
    )
    error = (whole - chunk).abs().max() / whole.abs().max()
    same = bool(error <= TOLERANCE[spec.layout.dtype])
    _refuse(
        spec,
        not same,
        f"state beside its KV (chunked prefill differs by {float(error):.1e} of the largest logit)",
    )


def _probe_tokens(count: int, spec: ModelSpec, seed: int) -> list[int]:
    return [(seed * 7919 + index * 104729) % spec.vocab_size for index in range(count)]


def mask_points(config: PretrainedConfig) -> torch.Tensor:
    """Positions whose distances show any mask's shape: around powers of two and the config's window."""
    edges = [2**power for power in range(18)]
    window = getattr(config, "sliding_window", None)
    edges += [window] if isinstance(window, int) else []
    return torch.tensor(sorted({0} | {edge + step for edge in edges for step in (-1, 0, 1)}))


_calls: list[Recorded] = []


def _record_call(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Note the call and answer with zeros: only its arguments matter here."""
    _calls.append(Recorded(module, query, key, value, attention_mask, arguments))
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def _record_mask(*, mask_function: Callable[..., torch.Tensor], config: PretrainedConfig, **_: Any) -> torch.Tensor:
    """The model's mask at `mask_points` instead of the forward's few positions, so that long windows show."""
    points, zero = mask_points(config), torch.tensor(0)
    return mask_function(zero, zero, points[:, None], points[None, :])


AttentionInterface.register(RECORD, _record_call)
AttentionMaskInterface.register(RECORD, _record_mask)
