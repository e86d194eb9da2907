"""Which ratios of prefill to decode nodes add no bottleneck besides storage (paper section 3)."""

import math

import msgspec

from dualpath.core.errors import ConfigError


class RatioBounds(msgspec.Struct, frozen=True):
    """P/D may lie in [low, high]; empty when low > high. The names say which links set each end."""

    low: float
    low_set_by: tuple[str, ...]
    high: float
    high_set_by: tuple[str, ...]

    def allow(self, prefill_nodes: int, decode_nodes: int) -> bool:
        """Whether this many nodes leave the storage NICs as the only bottleneck."""
        return self.low * decode_nodes <= prefill_nodes <= self.high * decode_nodes


def ratio_bounds(*, gpus: int, snic_per_cnic: float, dram_bytes_per_s: float, snic_bytes_per_s: float) -> RatioBounds:
    """The bounds for nodes with `gpus` GPUs (g), each with its own compute NIC (CNIC).

    A node's storage NICs carry `snic_bytes_per_s` (B*s), which is `snic_per_cnic` (s) times one CNIC; its
    DRAM moves `dram_bytes_per_s` (M). ConfigError unless all are positive.
    """
    if min(gpus, snic_per_cnic, dram_bytes_per_s, snic_bytes_per_s) <= 0:
        raise ConfigError("bounds of P/D need positive GPU counts and bandwidths")
    g, s = gpus, snic_per_cnic
    at_least = {
        "prefill CNIC read": 0.0 if 2 * s <= g else math.inf,  # 2*B*s/g <= B does not depend on P/D
        "prefill CNIC write": s / (g - s) if g > s else math.inf,
    }
    at_most = {
        "decode CNIC read": (g - 2 * s) / s,
        "decode CNIC write": (g - s) / (2 * s),
        "decode DRAM": (dram_bytes_per_s / snic_bytes_per_s - 3) / 2,
    }
    low, high = max(at_least.values()), min(at_most.values())
    return RatioBounds(low, _names_at(at_least, low), high, _names_at(at_most, high))


def _names_at(bounds: dict[str, float], value: float) -> tuple[str, ...]:
    return tuple(name for name, bound in bounds.items() if math.isclose(bound, value, abs_tol=1e-12))
