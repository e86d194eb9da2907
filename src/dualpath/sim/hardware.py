"""What a node can do, from a data file: rates, sizes, and the efficiencies that are one set for all figures."""

from typing import Annotated

import msgspec
from msgspec import Meta

from dualpath.core.errors import ConfigError
from dualpath.sim.facts import Fact, find_data, read_facts

DEFAULT = "default"

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Efficiency = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Latency = Annotated[int, Meta(ge=0)]


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node. Rates are of one direction; peaks are of dense matrices; `facts` keeps every value's source.

    Efficiencies are the share of a peak that long-running kernels reach.
    """

    name: str
    gpus: Count  # a node; one engine each
    cnic_bytes_per_s: Positive  # one CNIC, and there is one a GPU
    snic_bytes_per_s: Positive  # the node, line rate
    snic_efficiency: Efficiency  # what storage reads and writes reach of it
    dram_bytes_per_s: Positive  # the node, reads and writes together
    nvlink_bytes_per_s: Positive  # one GPU
    hbm_bytes: Positive
    hbm_bytes_per_s: Positive
    flops: dict[str, Positive]  # one GPU, a second, by dtype
    buffer: dict[str, Positive]  # DRAM buffer of a node by model, and the default
    message_ns: Latency  # to submit one transfer between nodes
    gemm_efficiency: Efficiency
    attention_efficiency: Efficiency
    hbm_efficiency: Efficiency
    link_efficiency: Efficiency
    collective_overlap: Share  # of an exchange's bytes, which computation hides
    near_exchange_ns: Latency  # of one exchange between engines of a node, besides its bytes
    far_exchange_ns: Latency  # between nodes
    kernel_ns: Latency  # least time of a kernel, start included; a layer has ten to forty
    step_ns: Latency  # between two forward passes: sampling, scheduling, metadata
    expert_imbalance: Annotated[float, Meta(ge=1)]  # busiest engine's expert work over the mean
    hbm_reserved_share: Share  # activations, graphs, communication buffers
    submit_ns: Latency  # from an agent to the scheduler
    reply_ns: Latency  # from the last token to the agent
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
    if "bfloat16" not in hardware.flops or DEFAULT not in hardware.buffer:
        raise ConfigError(f"{file}: give at least flops.bfloat16 and buffer.{DEFAULT}")
    return msgspec.structs.replace(hardware, facts=facts)


def _table(facts: dict[str, Fact], table: str) -> dict[str, object]:
    return {name.removeprefix(f"{table}."): fact.value for name, fact in facts.items() if name.startswith(f"{table}.")}
