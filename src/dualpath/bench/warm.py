"""A store that holds every session's first context, so that all policies start equal."""

import asyncio
from collections.abc import Sequence

import httpx

from dualpath.bench.client import VLLM_GAPS, Target, complete
from dualpath.bench.counters import settled_report
from dualpath.bench.experiment import UNTHROTTLED, cluster_config
from dualpath.bench.sessions import longest_request
from dualpath.core.config import Config
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.core.layout import BlockLayout
from dualpath.core.secret import cluster_key
from dualpath.launch.local import LocalCluster
from dualpath.scheduler.zmq_client import ZmqSchedulerClient
from dualpath.workload import History, Session

AT_ONCE = 4
ASK_S = 10.0


def fill_store(config: Config, sessions: Sequence[Session]) -> BlockLayout:
    """Compute all first prompts in a cluster without software throttles and wait until their blocks are durable.

    Returns how its blocks lie. A block that finds the write-back queue full is not written. So there is a second pass,
    one prompt after the other, if any was skipped; ServiceError if that does not help.
    """
    with LocalCluster(cluster_config(config, UNTHROTTLED)) as cluster:
        target = target_of(cluster)
        heartbeat_s = cluster.config.limits.heartbeat_s
        settled_report(cluster.url, heartbeat_s)  # by then the gateway knows what the nodes that joined can hold
        check_capacity(cluster, sessions)
        layout = asyncio.run(_layout(cluster))
        skipped = 0
        for at_once in (AT_ONCE, 1):
            asyncio.run(_compute(target, sessions, at_once))
            report = settled_report(cluster.url, heartbeat_s, durable=True)
            now_skipped = sum(node.writes_skipped for node in report.nodes)
            if now_skipped == skipped:
                return layout
            skipped = now_skipped
    raise ServiceError("the first contexts do not fit the write-back queue; raise --arena or --write-share")


def target_of(cluster: LocalCluster) -> Target:
    """Where a running cluster's clients send their requests."""
    config = cluster.config
    fields = VLLM_GAPS if config.engine.kind == "vllm" else {}
    network, deadline_s = config.network, config.limits.request_deadline_s
    return Target(network.host, network.port, config.served_name, deadline_s, fields)


def check_capacity(cluster: LocalCluster, sessions: Sequence[Session]) -> None:
    """ConfigError when the longest request can never be served."""
    models = httpx.get(f"{cluster.url}/v1/models", trust_env=False).raise_for_status().json()
    limit, longest = models["data"][0]["max_model_len"], longest_request(sessions)
    if longest > limit:
        raise ConfigError(
            f"the longest request needs {longest} tokens, the cluster takes {limit}; raise --arena, --kv-tokens "
            "and --window-tokens, or lower --max-context"
        )


async def _layout(cluster: LocalCluster) -> BlockLayout:
    """As the scheduler knows it: vLLM's servers tell it only when they have joined."""
    config = cluster.config
    key = cluster_key(config.network.key_file)
    client = await ZmqSchedulerClient.connect(
        config.scheduler_endpoint, f"ipc://{config.run_path}/replay-tokens.sock", ASK_S, key=key
    )
    try:
        return client.spec.layout
    finally:
        await client.close()


async def _compute(target: Target, sessions: Sequence[Session], at_once: int) -> None:
    places = asyncio.Semaphore(at_once)

    async def ask(session: Session) -> None:
        async with places:
            await complete(target, History(session).prompt().tolist(), 1)

    await asyncio.gather(*(ask(session) for session in sessions))
