"""What the connector of vLLM's scheduler tells those of its workers with every step, and what these answer.

Plain data: connector.py registers these types as what vLLM calls them.
"""

from dataclasses import dataclass, field

from dualpath.core.ids import EngineId


@dataclass
class Pairs:
    """vLLM's blocks and where each lies outside: a layer block (of the window's half) or a slot (of the arena).

    A stored block is `parts` of vLLM's blocks, one behind the other.
    """

    outside: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    def add(self, outside: int, part: int, block: int) -> None:
        """One block of vLLM's."""
        self.outside.append(outside)
        self.part.append(part)
        self.blocks.append(block)

    def extend(self, other: "Pairs") -> None:
        """All of another's."""
        self.outside += other.outside
        self.part += other.part
        self.blocks += other.blocks

    def __len__(self) -> int:
        return len(self.blocks)


@dataclass
class Stream:
    """Layer l of this step goes through half (first_layer + l) % 2 of the window."""

    first_layer: int
    fill: Pairs
    push: Pairs


@dataclass
class Session:
    """One life of the connection to the agent: workers map its memory anew when it changes."""

    number: int
    engine: EngineId


@dataclass
class StepMetadata:
    """One step of vLLM's."""

    number: int
    session: Session | None
    stream: Stream | None = None
    loads: dict[str, Pairs] = field(default_factory=dict)  # from the arena, by request; told by finished_recving
    saves: Pairs = field(default_factory=Pairs)  # to the arena, behind the step
    finals: list[str] = field(default_factory=list)  # requests whose last blocks are among the saves
    lost: list[int] = field(default_factory=list)  # blocks that were promised and do not come

    @property
    def idle(self) -> bool:
        """Whether workers have nothing to do for it."""
        return not (self.stream or self.loads or self.saves.blocks or self.finals or self.lost)


@dataclass
class StepDone:
    """Steps whose saves are in the arena, and what their layers waited; of all ranks when it comes to the scheduler."""

    steps: set[int]
    wait_ns: int = 0

    def aggregate(self, other: "StepDone") -> "StepDone":
        """With another rank's answer to the same steps."""
        return StepDone(self.steps & other.steps, max(self.wait_ns, other.wait_ns))


@dataclass
class ShardShape:
    """How one worker's KV cache lies in memory: `page_bytes` of each vLLM block in each layer."""

    layers: int
    page_bytes: int
    memory: str
