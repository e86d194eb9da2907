"""Real clusters of real processes for tests: start one, ask it, compare its tokens."""

import asyncio
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from dualpath.core.config_file import load_config
from dualpath.core.report import ClusterReport
from dualpath.launch.local import LocalCluster

TIE_LOGITS = 1e-3  # a first difference is allowed only where the two best logits lie this close


@dataclass
class Answer:
    """What a completion gave."""

    ids: list[int]
    cached: int
    gaps: list[float]


@dataclass
class Ask:
    """A prompt and how many tokens to generate."""

    prompt: list[int]
    tokens: int


def random_asks(seed: int, count: int, *, longest: int = 700, tokens: int = 70) -> list[Ask]:
    """Prompts of random tokens, of which some share a beginning."""
    rng = random.Random(seed)
    common = [rng.randrange(32, 250) for _ in range(200)]
    asks = []
    for _ in range(count):
        own = [rng.randrange(32, 250) for _ in range(rng.randrange(1, longest - len(common)))]
        asks.append(Ask((common if rng.random() < 0.5 else []) + own, rng.randrange(1, tokens)))
    return asks


def cluster(folder: Path, store: Path, make_roles: Any = None, **sections: dict[str, Any]) -> LocalCluster:
    """A cluster that serves `folder` from `store`; sections as in the configuration file."""
    overrides: dict[str, dict[str, Any]] = {
        "model": {"name": "tiny", "path": str(folder)},
        "storage": {"path": str(store), "arena": "256MiB"},
        "network": {"port": 0},
        "limits": {"start_deadline_s": 120.0},
    }
    for name, values in sections.items():
        overrides[name] = {**overrides.get(name, {}), **values}
    extra = {"make_roles": make_roles} if make_roles else {}
    return LocalCluster(load_config(None, overrides), **extra)


def ask_all(url: str, asks: Sequence[Ask], *, model: str = "tiny") -> list[Answer]:
    """Send all at once; answers in order. A refused request fails the test with the server's words."""

    async def one(client: httpx.AsyncClient, ask: Ask) -> Answer:
        body = {
            "model": model, "prompt": ask.prompt, "max_tokens": ask.tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True,
        }  # fmt: skip
        response = await client.post(f"{url}/v1/completions", json=body, timeout=180)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        cached = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return Answer(choice["token_ids"], cached, choice["logit_gaps"])

    async def everyone() -> list[Answer]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(one(client, ask) for ask in asks))

    return asyncio.run(everyone())


def assert_equal_tokens(answers: Sequence[Answer], expected: Sequence[Sequence[int]]) -> None:
    """All tokens are the expected ones; a first difference is allowed only at a near tie of the two best logits.

    Every tie that was used is a warning, so that the summary of the test run counts them.
    """
    for number, (answer, tokens) in enumerate(zip(answers, expected, strict=True)):
        assert len(answer.ids) == len(tokens), f"request {number}: {len(answer.ids)} tokens, not {len(tokens)}"
        wrong = next((i for i, (a, b) in enumerate(zip(answer.ids, tokens, strict=True)) if a != b), None)
        if wrong is not None:
            gap = answer.gaps[wrong]
            assert gap < TIE_LOGITS, (
                f"request {number} differs at token {wrong}, where the best logits are {gap:g} apart"
            )
            warnings.warn(f"near tie used: request {number}, token {wrong}, logits {gap:g} apart", stacklevel=2)


def cluster_report(url: str) -> ClusterReport:
    """The cluster's state."""
    return msgspec.json.decode(httpx.get(f"{url}/cluster", timeout=10).content, type=ClusterReport)


def wait_durable(url: str) -> ClusterReport:
    """Wait until all blocks are written back and all slots are free again; AssertionError if that does not come."""
    for _ in range(400):
        report = cluster_report(url)
        writes = report.pending_writes + sum(n.write_queue_blocks for n in report.nodes)
        slots = sum(n.arena_slots_used for n in report.nodes)
        if report.ready and not writes and not slots:
            return report
        time.sleep(0.05)
    raise AssertionError(f"after 20 s {writes} blocks are not written, {slots} slots not free: {report}")
