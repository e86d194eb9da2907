"""One probe of a running cluster: does a prompt come back from the store, by which paths, and with the same answer?"""

import random
import time
from typing import Any

import httpx
import msgspec

from dualpath.core.errors import ServiceError
from dualpath.core.report import ClusterReport, NodeStats

PROMPT_TOKENS = 520  # some blocks of any usual size
DEADLINE_S = 120.0
POLL_S = 0.1


class Carried(msgspec.Struct, frozen=True):
    """What one node did for the second request, in bytes."""

    node: str
    role: str
    read: int  # from storage
    retained: int  # from an arena that still held it
    lanes: dict[str, int]  # layers_in, layers_out, blocks_in, blocks_out


class Probe(msgspec.Struct, frozen=True):
    """The same prompt twice: computed, then loaded."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    computed_s: float
    loaded_s: float
    carried: list[Carried]


def probe(url: str, api_key: str = "") -> Probe:
    """Ask the cluster behind a gateway. ServiceError, with the mend, when it does not do what it is for."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=DEADLINE_S, trust_env=False) as http:
        try:
            return _probe(http)
        except httpx.HTTPError as error:
            raise ServiceError(f"no gateway answers at {url}: {error or repr(error)}") from None


def _probe(http: httpx.Client) -> Probe:
    health = http.get("/health").json()
    if health.get("missing"):
        raise ServiceError(f"the cluster is not ready; missing: {', '.join(health['missing'])}")
    model = str(http.get("/v1/models").json()["data"][0]["id"])
    prompt = [random.randrange(32, 250) for _ in range(PROMPT_TOKENS)]  # new to every cache
    first, _, computed_s = _complete(http, model, prompt)
    _await_writes(http)
    before = _report(http)
    second, cached, loaded_s = _complete(http, model, prompt)
    after = _report(http)
    if not cached:
        raise ServiceError(
            "the second of two equal requests found nothing cached: look for write errors in the decode nodes' agents, "
            "and whether the servers are called through this gateway"
        )
    carried = [_carried(node, before) for node in after.nodes]
    if not any(each.read or each.retained for each in carried):
        raise ServiceError(f"{cached} tokens count as cached, but no node has read or kept them; see the agents' logs")
    if first != second:
        raise ServiceError("the answer with loaded KV differs from the computed one: do not use this cluster")
    return Probe(model, PROMPT_TOKENS, cached, computed_s, loaded_s, carried)


def _complete(http: httpx.Client, model: str, prompt: list[int]) -> tuple[str, int, float]:
    """Text, cached tokens and seconds of a short greedy answer."""
    start_s = time.monotonic()
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body)
    if not answer.is_success:
        raise ServiceError(f"the cluster refuses a probe of {PROMPT_TOKENS} tokens: {answer.text[:300]}")
    cached = answer.headers.get("x-dualpath-cached-tokens")
    if cached is None:
        cached = (answer.json()["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return answer.json()["choices"][0]["text"], int(cached), time.monotonic() - start_s


def _await_writes(http: httpx.Client) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while _report(http).pending_writes:
        if time.monotonic() > deadline_s:
            raise ServiceError(
                f"blocks are not written back within {DEADLINE_S:g} s: is the store reachable and not full?"
            )
        time.sleep(POLL_S)


def _report(http: httpx.Client) -> ClusterReport:
    time.sleep(1.0)  # agents report twice a second
    return msgspec.json.decode(http.get("/cluster").content, type=ClusterReport)


def _carried(after: NodeStats, report: ClusterReport) -> Carried:
    before = next((node for node in report.nodes if node.node == after.node), NodeStats(after.node, after.role))
    lanes = {lane: count - before.lane_bytes.get(lane, 0) for lane, count in after.lane_bytes.items()}
    retained = after.retained_bytes - before.retained_bytes
    return Carried(after.node, after.role, after.read_bytes - before.read_bytes, retained, lanes)
