"""All settings of a cluster: one typed tree, read from one file, every value also a flag of the command line.

A value's help text, bounds and flag stand next to it, once; cli/options.py builds the command line from them.
config_file.py reads and checks.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.units import parse_bytes, parse_rate

CONTROL = "control"  # the host of scheduler and gateway


def _value(description: str, *, flag: str | None = None, **bounds: Any) -> Meta:
    """What --help says of a value, its bounds, and its flag where that is not simply its name."""
    return Meta(description=description, extra={"flag": flag}, **bounds)


class Section(msgspec.Struct, frozen=True):
    """Base of all sections."""


class Cluster(Section, frozen=True):
    """Which roles there are."""

    topology: Annotated[str, _value("Prefill and decode nodes: 2P4D is two and four.")] = "1P1D"
    engines_per_node: Annotated[int, _value("Engines (GPUs) of every node.", ge=1)] = 1


class Model(Section, frozen=True):
    """What is served."""

    name: Annotated[str, _value("smollm2, tiny, or a local Hugging Face folder.", flag="model")] = "smollm2"
    path: Annotated[str, _value("Folder of the prepared model; filled in by up.", flag="model-path")] = ""
    served_name: Annotated[str, _value("Name under /v1/models; empty: the model's name.")] = ""
    version: Annotated[str, _value("Stands for the weights in block keys; empty: hash them.", flag="model-version")] = (
        ""
    )
    block_tokens: Annotated[int, _value("Tokens of a full block.", ge=1)] = 64
    max_context: Annotated[
        Annotated[int, Meta(ge=1)] | None, _value("Longest context in tokens; unset: the model's.")
    ] = None
    device: Annotated[str, _value("Where engines compute, in torch's words: cpu, cuda.")] = "cpu"


class Engine(Section, frozen=True):
    """What computes."""

    kind: Annotated[
        Literal["reference", "vllm"],
        _value("What computes: our own reference engine, or vLLM servers with our connector.", flag="engine"),
    ] = "reference"
    python: Annotated[
        str, _value("Python of the environment with vLLM and dualpath; empty: this one.", flag="vllm-python")
    ] = ""
    arguments: Annotated[
        str, _value("More arguments for every vLLM server, as on its command line.", flag="vllm-args")
    ] = ""


class Storage(Section, frozen=True):
    """External storage, the nodes' NICs and DRAM buffers."""

    path: Annotated[
        str, _value("Folder, file URL or bucket (s3://...) of the store; empty: cache folder.", flag="store")
    ] = ""
    page_cache: Annotated[
        Literal["keep", "drop"], _value("Whether hosts keep blocks of a file system in their page cache.")
    ] = "keep"
    snic: Annotated[str, _value("Rate of every node's storage NIC, such as 20MB/s, or none.")] = "none"
    cnic: Annotated[str, _value("Rate of every node's compute NIC; empty: 8 times the storage NIC.")] = ""
    arena: Annotated[str, _value("DRAM buffer of every node, such as 1GiB.")] = "1GiB"
    write_share: Annotated[float, _value("Share of an arena that only write-back uses.", ge=0.01, le=0.9)] = 0.125
    read_concurrency: Annotated[int, _value("Reads that a node has outstanding.", ge=1)] = 4
    write_concurrency: Annotated[int, _value("Writes that a node has outstanding.", ge=1)] = 2
    pacing: Annotated[
        Literal["software", "network"],
        _value("Who holds NICs to their rates: software plays NICs on one machine, network has real or shaped ones."),
    ] = "software"
    transport: Annotated[
        Literal["auto", "shm", "tcp", "nixl"],
        _value("How bytes move between nodes; auto: for each peer the best that both ends have."),
    ] = "auto"
    profile: Annotated[
        str, _value("Host profile that dualpath doctor wrote, for the first guess of the read rate; empty: none.")
    ] = ""


class Scheduling(Section, frozen=True):
    """Who prefills, who decodes, who reads."""

    prefill_policy: Annotated[
        Literal["least-tokens-short-queue", "round-robin"], _value("How prefill engines are chosen.")
    ] = "least-tokens-short-queue"
    read_policy: Annotated[
        Literal["prefill-only", "round-robin", "shorter-queue", "split", "load-or-recompute", "any-node"],
        _value("Who reads a hit from storage."),
    ] = "split"
    quota_ms: Annotated[int, _value("Predicted attention time of one prefill batch.", ge=1)] = 300
    window_tokens: Annotated[int, _value("Prefill engine's window: tokens of one layer.", ge=1)] = 16384
    kv_tokens: Annotated[int, _value("Decode engine's KV memory in tokens.", ge=1)] = 65536
    overtake_limit: Annotated[int, _value("Times that a waiting request may be overtaken.", ge=0)] = 8


class Network(Section, frozen=True):
    """Where the cluster listens."""

    host: Annotated[str, _value("Address of the HTTP server.")] = "127.0.0.1"
    port: Annotated[int, _value("Port of the HTTP server; 0: any free one.", ge=0, le=65535)] = 8000
    api_key: Annotated[str, _value("Clients must send this key; better set in the file than here.")] = ""
    key_file: Annotated[
        str, _value("File with the cluster's secret; needed when roles talk over other addresses than loopback.")
    ] = ""
    run_dir: Annotated[str, _value("Folder for sockets and logs; empty: a private one, removed at the end.")] = ""
    scheduler: Annotated[
        str,
        _value("Scheduler's endpoint, ipc://path or tcp://address:port; empty: in run_dir.", flag="scheduler"),
    ] = ""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Fields for people, the key hidden."""
        shown = {**msgspec.structs.asdict(self), "api_key": "***" if self.api_key else ""}
        return list(shown.items())

    def __repr__(self) -> str:
        return f"Network({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Limits(Section, frozen=True):
    """Bounds and deadlines."""

    max_concurrent_requests: Annotated[int, _value("Requests in the cluster; more are answered 429.", ge=1)] = 256
    heartbeat_s: Annotated[float, _value("Seconds between two signs of life of a role.", gt=0)] = 0.5
    lease_s: Annotated[float, _value("Seconds of silence after which a role counts as lost.", gt=0)] = 5.0
    request_deadline_s: Annotated[float, _value("Longest life of a request in seconds.", gt=0)] = 600.0
    read_deadline_s: Annotated[float, _value("Longest read or write of a block in seconds.", gt=0)] = 30.0
    transfer_deadline_s: Annotated[float, _value("Longest transfer between nodes in seconds.", gt=0)] = 30.0
    start_deadline_s: Annotated[float, _value("Longest start of the cluster in seconds.", gt=0)] = 180.0


class Log(Section, frozen=True):
    """What the roles write to their logs."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _value("Least level that is logged.", flag="log-level")
    ] = "info"
    events: Annotated[
        str,
        _value(
            "File for the scheduler's events and commands, to replay its decisions from; empty: none.", flag="event-log"
        ),
    ] = ""


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the kernel counts one direction of a NIC: the classes of a device's queueing discipline."""

    device: str
    launch: list[str] = []  # prefix of commands that run where the device is


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine of the cluster, where it is not this one: [hosts.p0], or [hosts.control] for scheduler and gateway."""

    launch: list[str] = []  # prefix of commands that run there: ["ssh", "node7"], ["nsenter", "--net=..."]
    address: str = "127.0.0.1"  # on the compute network; for control: where engines reach the gateway
    store: str = ""  # the store as this host sees it (a mount point, say); empty: storage.path
    snic_in: Port | None = None  # counters for `wire_bytes`
    snic_out: Port | None = None
    cnic_in: Port | None = None
    cnic_out: Port | None = None


class Config(msgspec.Struct, frozen=True):
    """Everything that a role needs to know at start. Made by load_config, which checks it."""

    cluster: Cluster = msgspec.field(default_factory=Cluster)
    model: Model = msgspec.field(default_factory=Model)
    engine: Engine = msgspec.field(default_factory=Engine)
    storage: Storage = msgspec.field(default_factory=Storage)
    scheduling: Scheduling = msgspec.field(default_factory=Scheduling)
    network: Network = msgspec.field(default_factory=Network)
    limits: Limits = msgspec.field(default_factory=Limits)
    log: Log = msgspec.field(default_factory=Log)
    hosts: dict[str, Host] = {}  # by node, and CONTROL; nodes without an entry run on this machine

    def host_of(self, node: str) -> Host:
        """Where a node (or CONTROL) is."""
        return self.hosts.get(node, Host())

    def store_of(self, node: str) -> str:
        """The store as a node (or CONTROL) sees it."""
        return self.host_of(node).store or self.storage.path

    @property
    def prefill_nodes(self) -> list[NodeId]:
        """p0, p1, ..."""
        return [NodeId(f"p{i}") for i in range(parse_topology(self.cluster.topology)[0])]

    @property
    def decode_nodes(self) -> list[NodeId]:
        """d0, d1, ..."""
        return [NodeId(f"d{i}") for i in range(parse_topology(self.cluster.topology)[1])]

    @property
    def nodes(self) -> list[NodeId]:
        """All nodes, the prefill nodes first."""
        return self.prefill_nodes + self.decode_nodes

    @property
    def engines(self) -> list[EngineId]:
        """All engines, in the order of their nodes."""
        return [engine for node in self.nodes for engine in self.engines_of(node)]

    def engines_of(self, node: NodeId) -> list[EngineId]:
        """The engines of one node."""
        return [EngineId(f"{node}/{i}") for i in range(self.cluster.engines_per_node)]

    @property
    def snic_bytes_per_s(self) -> int | None:
        """Rate of a storage NIC; None without a limit."""
        return parse_rate(self.storage.snic)

    @property
    def cnic_bytes_per_s(self) -> int | None:
        """Rate of a compute NIC; the paper's node has 8 of them, each as fast as its one storage NIC."""
        if self.storage.cnic:
            return parse_rate(self.storage.cnic)
        return None if self.snic_bytes_per_s is None else 8 * self.snic_bytes_per_s

    @property
    def arena_bytes(self) -> int:
        """Size of a node's DRAM buffer."""
        return parse_bytes(self.storage.arena)

    @property
    def run_path(self) -> Path:
        """The folder of sockets and logs; ConfigError before the launcher or the operator has named one."""
        if not self.network.run_dir:
            raise ConfigError("no run folder: give --run-dir, the same for all roles")
        return Path(self.network.run_dir).expanduser().absolute()

    @property
    def scheduler_endpoint(self) -> str:
        """ZeroMQ endpoint at which the scheduler listens."""
        return self.network.scheduler or f"ipc://{self.run_path}/scheduler.sock"

    def agent_socket(self, node: NodeId) -> Path:
        """Unix socket at which a node's agent takes its engines."""
        return self.run_path / f"agent-{node}.sock"

    @property
    def served_name(self) -> str:
        """The model's name under /v1/models."""
        return self.model.served_name or Path(self.model.name).name


def parse_topology(text: str) -> tuple[int, int]:
    """Prefill and decode nodes named by text such as "2P4D"."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})P([1-9][0-9]{0,3})D", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"cannot read topology {text!r}; write for example 1P1D or 2P4D, at least one of each")
    return int(match[1]), int(match[2])
