"""What a node can do, from a data file: rates, sizes, and the efficiencies that are one set for all figures."""

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.sim.facts import Fact, find_data, read_facts

DEFAULT = "default"


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One node. Rates are of one direction; peaks are of dense matrices; `facts` keeps every value's source.

    Efficiencies are the share of a peak that long-running kernels reach.
    """

    name: str
    gpus: int  # a node; one engine each
    cnic_bytes_per_s: float  # one CNIC, and there is one a GPU
    snic_bytes_per_s: float  # the node
    dram_bytes_per_s: float  # the node, reads and writes together
    nvlink_bytes_per_s: float  # one GPU
    hbm_bytes: float
    hbm_bytes_per_s: float
    flops: dict[str, float]  # one GPU, a second, by dtype
    buffer: dict[str, float]  # DRAM buffer of a node by model, and the default
    message_ns: int  # to submit one transfer between nodes
    gemm_efficiency: float
    attention_efficiency: float
    hbm_efficiency: float
    link_efficiency: float
    collective_overlap: float  # share of an exchange's bytes that computation hides
    collective_ns: int  # latency of one exchange
    layer_ns: int  # kernels of a layer that are neither large nor exchanges
    step_ns: int  # between two forward passes: sampling, scheduling, metadata
    expert_imbalance: float  # busiest engine's share of expert work over the mean
    hbm_reserved_share: float  # activations, graphs, communication buffers
    submit_ns: int  # from an agent to the scheduler
    reply_ns: int  # from the last token to the agent
    facts: dict[str, Fact] = {}

    def flops_per_s(self, dtype: str) -> float:
        """Peak for weights of `dtype`; what the GPU has no arithmetic for is computed in bfloat16."""
        return self.flops.get(dtype, self.flops["bfloat16"])

    def buffer_bytes(self, model: str) -> float:
        """DRAM buffer of a node that serves `model`."""
        return self.buffer.get(model, self.buffer[DEFAULT])

    @property
    def assumptions(self) -> dict[str, Fact]:
        """The values that nobody published."""
        return {name: fact for name, fact in self.facts.items() if fact.assumption}


def load_hardware(name_or_path: str) -> Hardware:
    """A carried data file's name, or a TOML file; ConfigError, in words, when a value is missing or impossible."""
    file = find_data("hardware", name_or_path)
    facts = read_facts(file)
    plain = {name: fact.value for name, fact in facts.items() if "." not in name}
    tables = {table: _table(facts, table) for table in ("flops", "buffer")}
    try:
        hardware = msgspec.convert({"name": file.stem, **plain, **tables}, Hardware)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    _check(hardware, str(file))
    return msgspec.structs.replace(hardware, facts=facts)


def _table(facts: dict[str, Fact], table: str) -> dict[str, object]:
    return {name.removeprefix(f"{table}."): fact.value for name, fact in facts.items() if name.startswith(f"{table}.")}


def _check(hardware: Hardware, file: str) -> None:
    """Rates and sizes above zero, shares within 0..1."""
    if "bfloat16" not in hardware.flops or DEFAULT not in hardware.buffer:
        raise ConfigError(f"{file}: give at least flops.bfloat16 and buffer.default")
    for name in _NUMBERS:
        value = getattr(hardware, name)
        low_enough = value <= 1 or not name.endswith(("efficiency", "overlap", "share"))
        if value < 0 or (value == 0 and name not in _MAY_BE_ZERO) or not low_enough:
            raise ConfigError(f"{file}: {name} cannot be {value}")
    for name, value in [*hardware.flops.items(), *hardware.buffer.items()]:
        if value <= 0:
            raise ConfigError(f"{file}: {name} cannot be {value}")


_NUMBERS = [name for name in Hardware.__struct_fields__ if name not in ("name", "flops", "buffer", "facts")]
_MAY_BE_ZERO = {
    "message_ns",
    "collective_overlap",
    "collective_ns",
    "layer_ns",
    "step_ns",
    "hbm_reserved_share",
    "submit_ns",
    "reply_ns",
}
