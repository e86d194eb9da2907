"""Which engines share weights and step together, and what is left of an engine's memory for KV.

Experts lie spread over a group of whole nodes (expert parallelism), the rest is on every engine. The feed-forward part
of a dense model is spread over as few GPUs of a node as leave half of the memory to KV; attention always belongs to one
engine (data parallelism), so KV is never split.
"""

from dualpath.core.errors import ConfigError
from dualpath.sim.config_fields import DTYPE_BYTES
from dualpath.sim.hardware import Hardware
from dualpath.sim.models import ModelShape

PREFILL_GROUP_LIMIT = 16  # the paper's 2P4D: experts over 16 and 32 GPUs (section 6)
DECODE_GROUP_LIMIT = 32
WEIGHT_SHARE = 0.5  # of an engine's memory, for a dense model that can be spread


def group_engines(hardware: Hardware, model: ModelShape, nodes: int, limit: int) -> int:
    """Engines of a role's `nodes` that step together; all groups are alike. 1: each for itself."""
    gpus = hardware.gpus
    if model.is_moe:
        group_nodes = max(n for n in range(1, nodes + 1) if nodes % n == 0 and (n == 1 or n * gpus <= limit))
        return group_nodes * gpus
    room = WEIGHT_SHARE * hardware.hbm_bytes
    divisors = [n for n in range(1, gpus + 1) if gpus % n == 0]
    return next((n for n in divisors if engine_weight_bytes(model, n) <= room), gpus)


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
    weights = engine_weight_bytes(model, group)
    usable = hardware.hbm_bytes * (1 - hardware.hbm_reserved_share)
    if weights >= usable:
        raise ConfigError(
            f"{model.name} takes {weights / 1e9:.3g} GB on each of {group} engines that share its weights, and a GPU "
            f"of {hardware.name} has room for {usable / 1e9:.3g} GB: "
            "take more nodes of this role, smaller weights or larger GPUs"
        )
    return usable - weights
