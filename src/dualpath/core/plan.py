"""Read plans: who reads which cached blocks from storage (paper section 2, with splits and any reader)."""

import msgspec

from dualpath.core.ids import NodeId


class BlockRange(msgspec.Struct, frozen=True):
    """Blocks [start, stop) of a request's prompt, counted in full blocks from its beginning."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class ReadSegment(msgspec.Struct, frozen=True):
    """One run of blocks and the node that reads it."""

    blocks: BlockRange
    reader: NodeId


class ReadPlan(msgspec.Struct, frozen=True):
    """Every block of a hit exactly once: segments are in order, not empty, without gap or overlap."""

    segments: tuple[ReadSegment, ...]

    @property
    def stop(self) -> int:
        """The end of its last block; 0 without any."""
        return self.segments[-1].blocks.stop if self.segments else 0

    def blocks_by(self, reader: NodeId) -> int:
        """How many blocks this node reads."""
        return sum([s.blocks.stop - s.blocks.start for s in self.segments if s.reader == reader])

    def covers(self, hit: BlockRange) -> bool:
        """Whether the segments are exactly the range `hit`, in order."""
        position = hit.start
        for segment in self.segments:
            if segment.blocks.start != position or len(segment.blocks) <= 0:
                return False
            position = segment.blocks.stop
        return position == hit.stop
