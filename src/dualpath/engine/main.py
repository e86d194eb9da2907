"""The process of an engine: load the model, profile it, attach to the node's agent, serve."""

import logging
import os

from dualpath.control.outlet import Outlet
from dualpath.core import engine_wire, wire
from dualpath.core.config import Config
from dualpath.core.ids import EngineId, node_of
from dualpath.core.rate import RateMeter
from dualpath.core.report import Role
from dualpath.core.secret import cluster_key
from dualpath.core.served import served_spec
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.model import PackedModel
from dualpath.engine.prefill import PrefillEngine
from dualpath.engine.profile import measure_prefill_rate, profile_attention
from dualpath.node.client import AgentClient, SharedLayers
from dualpath.policy.batch import fit_attention_time

log = logging.getLogger("dualpath.engine")


def run(config: Config, engine: EngineId) -> None:
    """Run one engine until its agent is gone or SIGTERM ends the process (there is nothing to save)."""
    spec = served_spec(config)
    outlet = Outlet(cluster_key(config.network.key_file))
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    model = PackedModel.load(spec, config.model.device, threads)
    node = node_of(engine)
    role = Role.PREFILL if node in config.prefill_nodes else Role.DECODE

    path = config.agent_socket(node)

    def attach(kv_tokens: int, process_tokens_per_s: float) -> AgentClient:
        version, window = wire.PROTOCOL_VERSION, kv_tokens if role is Role.PREFILL else 0
        return AgentClient(
            path, engine_wire.EngineHello(version, engine, role, spec, kv_tokens, window, process_tokens_per_s)
        )

    if role is Role.DECODE:
        client = attach(config.scheduling.kv_tokens, 0.0)
        DecodeEngine(client, SharedLayers(path, engine), model, outlet).run()
    else:
        window_tokens = config.scheduling.window_tokens
        attention = fit_attention_time(profile_attention(model))
        log.info("attention time: %s", attention)
        rate = RateMeter(measure_prefill_rate(model))
        client = attach(window_tokens, rate.per_s)
        quota_ns = config.scheduling.quota_ms * 1_000_000
        PrefillEngine(
            client, SharedLayers(path, engine), model, outlet, attention, rate, quota_ns=quota_ns,
            window_tokens=window_tokens,
        ).run()  # fmt: skip
