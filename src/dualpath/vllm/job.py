"""A grant at a vLLM server, and the vLLM requests that carry it out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualpath.core import engine_wire, wire
from dualpath.core.keys import BlockKey, child_key, pack_tokens
from dualpath.core.report import Role
from dualpath.vllm.step import Pairs


@dataclass(eq=False)
class Job:
    """What the agent told of a grant, until the agent has heard that it is dropped."""

    start: wire.StartPrefill | wire.StartDecode
    ended: int = 0
    generated_tokens: int = 0
    capped: bool = False  # a sequence ended by its length
    streamed_tokens: int = 0  # prefill: of the prompt, on their way to the decode node (or cached)
    owner: str = ""  # decode: the request whose generated blocks are kept; others may have generated other tokens
    frozen: bool = False  # decode: the weights have changed; what is generated belongs to no key
    dropping: bool = False  # the agent waits for us to let go

    @property
    def grant(self) -> int:
        """Its number."""
        return self.start.grant

    @property
    def role(self) -> Role:
        """Which half of the request this is."""
        return Role.PREFILL if isinstance(self.start, wire.StartPrefill) else Role.DECODE

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.start.tokens) // 4


@dataclass(eq=False)
class Tracked:
    """A vLLM request under a job."""

    job: Job
    request: Any  # vLLM's
    load_start: int = 0  # tokens [load_start, load_stop) were promised
    load_stop: int = 0
    blocks: list[int] = field(default_factory=list)  # vLLM's, when it took the promise
    started: bool = False
    loading: bool = False  # vLLM's workers read the arena for it
    keyed_blocks: int = 0  # decode: stored blocks whose key is `parent` or before
    parent: BlockKey = b""
    last_fills: list[engine_wire.BlockFilled] = field(default_factory=list)  # told when all is saved

    def begin_decode(self, block_tokens: int) -> None:
        """Blocks of the prompt are the scheduler's affair; ours begin with the one that it leaves incomplete."""
        assert isinstance(self.job.start, wire.StartDecode)
        self.keyed_blocks = self.job.prompt_tokens // block_tokens
        self.parent = self.job.start.parent_key

    def fill_blocks(self, known_tokens: int, block_tokens: int) -> Iterator[tuple[int, engine_wire.BlockFilled]]:
        """Number and news of each further stored block that the first `known_tokens` tokens fill."""
        start = self.job.start
        assert isinstance(start, wire.StartDecode)
        while (self.keyed_blocks + 1) * block_tokens <= known_tokens and self.keyed_blocks < len(start.slots):
            number, parent = self.keyed_blocks, self.parent
            tokens = self.request.all_token_ids[number * block_tokens : (number + 1) * block_tokens]
            self.parent = child_key(parent, pack_tokens(tokens))
            self.keyed_blocks += 1
            yield (
                number,
                engine_wire.BlockFilled(start.grant, start.slots[number], self.parent, parent if number else b""),
            )


@dataclass(frozen=True)
class Grid:
    """Stored blocks over vLLM's."""

    block_tokens: int  # of a stored block
    vllm_tokens: int  # of one of vLLM's

    @property
    def parts(self) -> int:
        """vLLM's blocks in a stored one."""
        return self.block_tokens // self.vllm_tokens

    def pairs(self, start: int, stop: int, blocks: list[int], outside: Sequence[int], into: Pairs) -> None:
        """Pair vLLM's blocks that hold tokens [start, stop) with the places of their stored blocks."""
        if start >= stop:
            return
        for number in range(start // self.vllm_tokens, -(-stop // self.vllm_tokens)):
            into.add(outside[number // self.parts], number % self.parts, blocks[number])


def shifted(offset: int) -> Sequence[int]:
    """Places of stored blocks that lie in their order: block b at b + `offset`."""
    return range(offset, 1 << 62)


def grant_of(request: Any) -> int | None:
    """The grant that a request names; None when it came without one."""
    given = (request.kv_transfer_params or {}).get(engine_wire.GRANT_PARAMETER)
    grant = given.get("grant") if isinstance(given, dict) else None
    return grant if isinstance(grant, int) else None


def sequences_of(request: Any) -> int:
    """How many requests vLLM makes of the call that this one belongs to (its n)."""
    given = (request.kv_transfer_params or {}).get(engine_wire.GRANT_PARAMETER) or {}
    count = given.get("sequences", 1)
    return count if isinstance(count, int) and count > 0 else 1
