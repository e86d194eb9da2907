"""How fast this host copies memory, and checks blocks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dualpath.core.hostprofile import MemoryRates
from dualpath.core.keys import KEY_BYTES
from dualpath.doctor.budget import best_rate
from dualpath.doctor.scratch import scratch_layout
from dualpath.store.format import BlockFormat

COPY_BYTES = 256 << 20  # beyond any cache
CRC_BYTES = 8 << 20


def memory_rates(threads: int, available_bytes: int, seconds: float) -> MemoryRates:
    """Best of several runs in about `seconds`; takes at most an eighth of the available memory."""
    size = max(1 << 20, min(COPY_BYTES, available_bytes // 16)) // threads * threads
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)  # ones, so that all pages are there

    def copy(first: int, last: int) -> int:
        np.copyto(target[first:last], source[first:last])
        return last - first

    part = size // threads
    parts = [(index * part, (index + 1) * part) for index in range(threads)]
    block, key = source[: min(size, CRC_BYTES)].data, bytes(KEY_BYTES)
    block_format = BlockFormat(scratch_layout(block.nbytes))

    def check() -> int:
        block_format.header(key, block)  # its cost is the block's checksum
        return block.nbytes

    with ThreadPoolExecutor(threads) as pool:
        return MemoryRates(
            copy_bytes_per_s=best_rate(lambda: copy(0, size), seconds / 3),
            copy_all_cores_bytes_per_s=best_rate(lambda: sum(pool.map(lambda p: copy(*p), parts)), seconds / 3),
            crc_bytes_per_s=best_rate(check, seconds / 3),
        )
