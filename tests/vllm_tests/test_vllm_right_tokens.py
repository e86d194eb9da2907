"""Clusters of vLLM servers give the very tokens of plain vLLM, whoever reads, and use what they read."""

import random
from pathlib import Path

import httpx
import pytest

from dualpath.launch.local import LocalCluster
from vllm_tests.servers import Answer, choose_policy, complete, report, settled, tokens_of

TEXT = (Path(__file__).parents[2] / "README.md").read_text().split()
TIE = 1e-3  # a first difference is allowed only where the two best log-probabilities lie this close


def conversations(seed: int, agents: int, turns: int, words: int) -> list[list[str]]:
    """What each agent adds to its context in each turn."""
    rng = random.Random(seed)
    starts = [rng.randrange(len(TEXT) - turns * words) for _ in range(agents)]
    return [[" ".join(TEXT[s + t * words : s + (t + 1) * words]) + "\n" for t in range(turns)] for s in starts]


def passage(title: str, start: int, words: int) -> str:
    """Text whose first block no other test has: where its hits come from does not hang on others' random starts."""
    return f"{title}: " + " ".join(TEXT[start : start + words])


def assert_equal(got: list[Answer], want: list[Answer], what: str) -> None:
    for number, (ours, plain) in enumerate(zip(got, want, strict=True)):
        pairs = zip(ours.ids, plain.ids, plain.gaps, strict=True)
        first = next(((i, gap) for i, (a, b, gap) in enumerate(pairs) if a != b), None)
        assert first is None or first[1] < TIE, f"{what}: answer {number} differs at {first}"


@pytest.mark.timeout(420)
@pytest.mark.parametrize("policy", ["prefill-only", "round-robin", "split"])
def test_tokens_equal_plain_vllm(running: LocalCluster, plain: str, policy: str) -> None:
    seed = random.randrange(1 << 20)
    print(f"seed {seed}")
    choose_policy(running, policy)
    before = {node.node: node.read_bytes for node in report(running.url).nodes}
    prompts = [""] * 4
    agents = conversations(seed, agents=4, turns=3, words=90)
    hits = 0
    for turn in range(3):
        prompts = [prompt + agent[turn] for prompt, agent in zip(prompts, agents, strict=True)]
        got = complete(running.url, prompts)
        assert_equal(got, complete(plain, prompts), f"{policy}, turn {turn}")
        hits += sum(answer.cached > 0 for answer in got)
        settled(running.url)
    assert hits >= 8, "every agent's second and third turn finds its first"
    read = {node.node: node.read_bytes - before[node.node] for node in report(running.url).nodes}
    assert read["p0"] > 0
    assert (read["d0"] > 0) == (policy != "prefill-only"), read
    assert not report(running.url).recomputes


@pytest.mark.timeout(300)
def test_blocks_belong_to_a_salt_and_to_a_version_of_the_weights(running: LocalCluster) -> None:
    prompt = passage("Salts and versions", 300, 80)
    assert complete(running.url, [prompt])[0].cached == 0
    settled(running.url)
    assert complete(running.url, [prompt], cache_salt="tenant")[0].cached == 0
    assert complete(running.url, [prompt])[0].cached > 0
    rename(running.url, "step-2")
    assert complete(running.url, [prompt])[0].cached == 0
    rename(running.url, "")
    assert complete(running.url, [prompt])[0].cached > 0


def rename(url: str, version: str) -> None:
    assert httpx.post(f"{url}/dualpath/weights", json={"version": version}, timeout=10).status_code == 204


@pytest.mark.timeout(300)
def test_generated_blocks_are_hits(running: LocalCluster, plain: str) -> None:
    prompt = passage("Generated blocks", 500, 60)
    first = complete(running.url, [prompt], tokens=140)[0]
    settled(running.url)
    body = complete(plain, [prompt], tokens=140)[0]
    assert first.ids == body.ids
    rendered = tokens_of(running.url, prompt)
    again = complete(running.url, [rendered + first.ids])[0]
    assert again.cached >= (len(rendered) + 139) // 64 * 64, "all but the last token's KV was kept"
    assert_equal([again], complete(plain, [rendered + first.ids]), "a generated prefix")
