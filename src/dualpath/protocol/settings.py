"""What the operator chooses about the cluster machine."""

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """Policies by name, bounds, and deadlines."""

    block_tokens: int
    prefill_policy: str
    read_policy: str
    overtake_limit: int = 8  # later requests that may pass one whose slots are not free
    max_attempts: int = 6
    attempts_with_hits: int = 3  # later attempts recompute everything: storage has failed often enough
    lease_ns: int = 10_000_000_000
    stage_deadline_ns: int = 120_000_000_000  # for a running attempt, without any progress
    release_deadline_ns: int = 30_000_000_000  # at least the longest transfer: how long a lost node may still write
    waiting_deadline_ns: int = 600_000_000_000
    first_grant: int = 1  # above all grants of earlier schedulers, if nodes may outlive one
