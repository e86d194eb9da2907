"""Whatever path the KV takes, the tokens are those of a plain run."""

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dualpath.core.config import Config
from dualpath.launch.process import Role
from dualpath.launch.roles import cluster_roles
from e2e.live_cluster import (
    Answer,
    Ask,
    ask_all,
    assert_equal_tokens,
    cluster,
    cluster_report,
    random_asks,
    wait_durable,
)

Reference = Callable[[Path, Sequence[Ask]], list[list[int]]]
SEED = 11


def followed_up(asks: Sequence[Ask], answers: Sequence[Answer], seed: int) -> list[Ask]:
    """The next turn of each session: all that was said, and a little more."""
    rng = random.Random(seed)
    return [
        Ask([*ask.prompt, *answer.ids, *(rng.randrange(32, 250) for _ in range(rng.randrange(1, 80)))], ask.tokens)
        for ask, answer in zip(asks, answers, strict=True)
    ]


@pytest.mark.parametrize(
    ("policy", "topology", "engines", "transport"),
    [
        ("prefill-only", "1P1D", 1, "shm"),
        ("shorter-queue", "1P2D", 1, "tcp"),
        ("split", "2P1D", 1, "shm"),
        ("round-robin", "1P1D", 2, "tcp"),
        ("any-node", "1P2D", 1, "tcp"),
        ("any-node", "2P1D", 1, "shm"),
    ],
)
def test_every_policy_and_topology_gives_the_tokens_of_a_plain_run(
    tiny: Path, reference: Reference, tmp_path: Path, policy: str, topology: str, engines: int, transport: str
) -> None:
    asks = random_asks(SEED, 6)
    with cluster(
        tiny,
        tmp_path,
        cluster={"topology": topology, "engines_per_node": engines},
        scheduling={"read_policy": policy},
        storage={"transport": transport},
    ) as running:
        for turn in range(3):
            answers = ask_all(running.url, asks)
            assert_equal_tokens(answers, reference(tiny, asks))
            if turn:
                assert all(a.cached >= (len(q.prompt) - 160) // 64 * 64 for a, q in zip(answers, asks, strict=True))
            asks = followed_up(asks, answers, turn)
        report = wait_durable(running.url)
        assert not report.recomputes
        assert (report.decisions.get("read:relay", 0) > 0) == (policy == "any-node"), report.decisions


def test_hits_split_at_random_blocks_in_a_small_arena_with_small_chunks(
    tiny: Path, reference: Reference, tmp_path: Path
) -> None:
    """Random plans; arena and KV memory for about two requests of six; a quota of 1 ms: prompts are chunked."""

    def roles(config: Config, config_file: Path) -> list[Role]:
        script = Path(__file__).with_name("random_split_scheduler.py")
        command = (sys.executable, str(script), str(config_file), str(SEED))
        return [r._replace(command=command) if r.name == "scheduler" else r for r in cluster_roles(config, config_file)]

    asks = random_asks(SEED + 1, 6)
    with cluster(
        tiny,
        tmp_path,
        roles,
        storage={"arena": "16MiB"},
        scheduling={"quota_ms": 1, "window_tokens": 2048, "kv_tokens": 1600},
    ) as running:
        for turn in range(3):
            answers = ask_all(running.url, asks)
            assert_equal_tokens(answers, reference(tiny, asks))
            asks = followed_up(asks, answers, turn)
        report = wait_durable(running.url)
    assert report.decisions.get("read:split", 0) > 0
    chunked = next(e for e in report.engines if e.role == "prefill")
    assert chunked.steps > chunked.generated_tokens, "no prompt was prefilled in chunks"


def test_hits_survive_a_restart_of_the_whole_cluster(tiny: Path, reference: Reference, tmp_path: Path) -> None:
    asks = random_asks(SEED + 2, 4)
    with cluster(tiny, tmp_path) as running:
        answers = ask_all(running.url, asks)
        wait_durable(running.url)
    asks = followed_up(asks, answers, SEED)
    with cluster(tiny, tmp_path) as running:
        answers = ask_all(running.url, asks)
        report = cluster_report(running.url)
    assert_equal_tokens(answers, reference(tiny, asks))
    assert all(a.cached >= (len(q.prompt) - 160) // 64 * 64 for a, q in zip(answers, asks, strict=True))
    assert report.decisions.keys() & {"read:prefill", "read:decode", "read:split"}, report.decisions


def test_histories_that_shrink_restart_and_interleave(tiny: Path, reference: Reference, tmp_path: Path) -> None:
    """Agents do not only append: partial hits where a prefix remains, right tokens always."""
    rng = random.Random(SEED + 3)
    base = [rng.randrange(32, 250) for _ in range(500)]
    other = [rng.randrange(32, 250) for _ in range(300)]
    prompts = [
        base,  # fresh
        base[:330],  # shrunk to the middle of a block
        base[:330] + other[:100],  # another continuation
        other,  # restart
        base + other[:64],  # back to the first
        base[:128],  # exactly two blocks, all stored: one is computed again for the first token
        base[:64],
    ]
    expected_hits = [0, 320, 320, 0, 448, 64, 0]
    with cluster(tiny, tmp_path, cluster={"topology": "1P2D"}) as running:
        for prompt, hit in zip(prompts, expected_hits, strict=True):
            asks = [Ask(prompt, 20)]
            answers = ask_all(running.url, asks)
            assert_equal_tokens(answers, reference(tiny, asks))
            assert answers[0].cached == hit
