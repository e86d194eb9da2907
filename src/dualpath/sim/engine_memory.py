"""Which engines share weights and step together, and what is left of an engine's memory for KV.

Experts lie spread over a group of whole nodes (expert parallelism), the rest is on every engine. A dense model has its
feed-forward part spread over the GPUs of a node, if the model takes more than half of a GPU. Attention always belongs
to one engine (data parallelism), so KV is never split.
"""

from dualpath.core.errors import ConfigError
from dualpath.sim.config_fields import DTYPE_BYTES
from dualpath.sim.hardware import Hardware
from dualpath.sim.models import ModelShape

PREFILL_GROUP_LIMIT = 16  # the paper's 2P4D: experts over 16 and 32 GPUs (section 6)
DECODE_GROUP_LIMIT = 32
LONE_WEIGHT_SHARE = 0.5  # of a GPU's memory, up to which a dense model stays whole


def group_engines(hardware: Hardware, model: ModelShape, nodes: int, limit: int) -> int:
    """Engines of a role's `nodes` that step together; all groups are alike. 1: each for itself.

    Experts: the most nodes within `limit` engines, or, if their memory is too small, the fewest that suffice.
    """
    gpus = hardware.gpus
    if not model.is_moe:
        return 1 if model.weight_bytes <= LONE_WEIGHT_SHARE * hardware.hbm_bytes else gpus
    groups = [n * gpus for n in range(1, nodes + 1) if nodes % n == 0]
    fitting = [group for group in groups if engine_weight_bytes(model, group) < _usable_bytes(hardware)]
    within = [group for group in fitting if group <= limit]
    return max(within) if within else min(fitting, default=groups[-1])


def engine_weight_bytes(model: ModelShape, group: int) -> float:
    """Weights on one engine of a group."""
    spread = pooled_bytes(model)
    return model.weight_bytes - spread + spread / group


def pooled_bytes(model: ModelShape) -> float:
    """Weights that a group has once: all routed experts, or a dense model's feed-forward parts."""
    ff = model.feed_forward
    if model.is_moe:
        return ff.moe_layers * ff.experts * model.expert_bytes
    return ff.dense_layers * ff.dense_parameters * DTYPE_BYTES[model.weight_dtype]


def free_bytes(hardware: Hardware, model: ModelShape, group: int) -> float:
    """Memory of an engine for KV; ConfigError when the weights leave none."""
    weights, usable = engine_weight_bytes(model, group), _usable_bytes(hardware)
    if weights >= usable:
        raise ConfigError(
            f"{model.name} takes {weights / 1e9:.3g} GB on each of {group} engines that share its weights, and a GPU "
            f"of {hardware.name} has room for {usable / 1e9:.3g} GB: take more nodes of this role, smaller weights or "
            "larger GPUs"
        )
    return usable - weights


def _usable_bytes(hardware: Hardware) -> float:
    return hardware.hbm_bytes * (1 - hardware.hbm_reserved_share)
