"""DualPathConnector: vLLM's hooks, passed on to the planner (scheduler side) or the worker (worker side).

kv_connector_extra_config:
    agent          Unix socket of this node's agent
    url            where this server's API is reached by the gateway, such as http://127.0.0.1:8100
    block_tokens   tokens of a stored block; 64 where vLLM's blocks divide it, else vLLM's block
    model_version  stands for the weights in block keys; without it a local folder's weights are hashed
    key_file       the cluster's secret, when gateways are on other hosts
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.request import RequestStatus

from dualpath.control.outlet import Outlet
from dualpath.core import engine_wire, wire
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId
from dualpath.core.report import Role
from dualpath.core.secret import cluster_key
from dualpath.vllm.job import Grid
from dualpath.vllm.layout import check_supported, model_spec, stored_block_tokens
from dualpath.vllm.link import AgentLink
from dualpath.vllm.load import FIRST_RATE
from dualpath.vllm.planner import Planner
from dualpath.vllm.shard import KvShard
from dualpath.vllm.stats import DualPathMetrics, DualPathStats
from dualpath.vllm.step import ShardShape, StepDone, StepMetadata
from dualpath.vllm.worker import Worker

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

log = logging.getLogger("dualpath.vllm")
ROLES = {"kv_producer": Role.PREFILL, "kv_consumer": Role.DECODE, "kv_both": None}
OPTIONS = {"agent", "url", "block_tokens", "model_version", "key_file"}


KVConnectorMetadata.register(StepMetadata)
KVConnectorWorkerMetadata.register(StepDone)
KVConnectorHandshakeMetadata.register(ShardShape)


class DualPathConnector(KVConnectorBase_V1):
    """For vLLM's --kv-transfer-config; see the module."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = vllm_config
        self._extra: dict[str, Any] = dict(self._kv_transfer_config.kv_connector_extra_config)
        _check_options(self._extra)
        check_supported(vllm_config, kv_cache_config)
        self._agent = Path(self._extra["agent"])
        spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        self._grid = Grid(stored_block_tokens(spec.block_size, self._extra.get("block_tokens")), spec.block_size)
        self._worker: Worker | None = None
        self._shape: ShardShape | None = None
        self._planner: Planner | None = None
        self._link: AgentLink | None = None
        self._outlet: Outlet | None = None

    @property
    def requires_kv_delivery(self) -> bool:
        """New KV leaves within its step, so a preemption takes nothing away."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layers are waited for one by one."""
        return True

    # worker ------------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """vLLM's KV cache by layer name."""
        ordered = {name: kv_caches[name] for name in sorted(kv_caches, key=extract_layer_index)}
        shard = KvShard(ordered, self._kv_cache_config.num_blocks)
        ranks = self._config.parallel_config.tensor_parallel_size
        self._shape = shard.shape
        self._worker = Worker(self._agent, shard, get_tensor_model_parallel_rank(), ranks, self._grid.parts)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """How this rank's KV lies, for the scheduler side to announce."""
        return self._shape

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins."""
        super().bind_connector_metadata(connector_metadata)
        assert self._worker and isinstance(connector_metadata, StepMetadata)
        self._worker.begin(connector_metadata)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Decode: loads beside the steps. Prefill: layers come as they are needed."""
        assert self._worker
        self._worker.load()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Until this layer's cached KV is in the cache."""
        assert self._worker
        self._worker.before_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """This layer is computed."""
        assert self._worker
        self._worker.after_layer(layer_name)

    def wait_for_save(self) -> None:
        """A step ends."""
        assert self._worker
        self._worker.end()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose saves, and whose loads, have ended."""
        assert self._worker
        return self._worker.take_ended()

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks to be computed again."""
        assert self._worker
        return self._worker.take_lost()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Which steps' saves are done."""
        assert self._worker
        return self._worker.take_done()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """What this side has counted since it was asked last."""
        source = self._worker or self._planner
        counts = source.take_counts() if source else {}
        return DualPathStats(data=counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Stats as they came from another process."""
        return DualPathStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: "VllmConfig", metric_types: dict[Any, Any], labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:  # fmt: skip
        """Our families of vLLM's /metrics."""
        return DualPathMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # scheduler ---------------------------------------------------------------------------------------------------

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """All ranks have said how their KV lies: join the cluster."""
        shards = {rank: shape for rank, shape in metadata.items() if isinstance(shape, ShardShape)}
        spec = model_spec(self._config, self._kv_cache_config, shards, self._extra)
        scheduler = self._config.scheduler_config
        kv_tokens = (self._kv_cache_config.num_blocks - 1) * self._grid.vllm_tokens  # vLLM keeps block 0 for itself
        size = self._grid.block_tokens
        window = self._config.model_config.max_model_len + scheduler.max_num_batched_tokens
        window = -(-window // size) * size + 2 * size * (scheduler.max_num_seqs + 2)
        role = ROLES[self._kv_transfer_config.kv_role]
        hello = engine_wire.EngineHello(
            wire.PROTOCOL_VERSION,
            EngineId(""),
            role,
            spec,
            kv_tokens,
            window,
            FIRST_RATE,
            len(shards),
            self._extra["url"],
        )
        self._outlet = outlet = Outlet(cluster_key(self._extra.get("key_file", "")))
        self._link = link = AgentLink(self._agent, hello)

        def listen(link: AgentLink) -> Planner:
            self._planner = Planner(self._grid, spec.layout, window, self._extra["url"], link.send, outlet.send)
            return self._planner

        link.connect(listen)

    def _plans(self) -> Planner:
        if self._planner is None:
            raise ConfigError("vLLM asked before its workers had registered their KV caches; is this vLLM 0.32?")
        return self._planner

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded behind vLLM's own."""
        return self._plans().matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """vLLM has blocks for the request."""
        self._plans().allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """What workers do in this step."""
        return self._plans().plan_step(scheduler_output)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """What all workers have done."""
        done = connector_output.kv_connector_worker_meta
        self._plans().done(
            connector_output.finished_sending or set(), connector_output.finished_recving or set(),
            done if isinstance(done, StepDone) else None,
        )  # fmt: skip

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The request is over; whether its blocks are still to be saved."""
        status = request.status
        completed = status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
        capped = status == RequestStatus.FINISHED_LENGTH_CAPPED
        return self._plans().finished(request, block_ids, completed=completed, capped=capped), None

    def reset_cache(self) -> bool | None:
        """vLLM's caches are reset, as after a change of weights."""
        self._plans().freeze()
        return True

    def shutdown(self) -> None:
        """The server ends."""
        if self._link:
            self._link.close()
        if self._outlet:
            self._outlet.close()
        if self._worker:
            self._worker.close()


def _check_options(extra: dict[str, Any]) -> None:
    unknown = extra.keys() - OPTIONS
    if unknown:
        raise ConfigError(
            f"kv_connector_extra_config has no {', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTIONS))}"
        )
    for name in ("agent", "url"):
        if not extra.get(name):
            raise ConfigError(f'kv_connector_extra_config needs "{name}" (see the vLLM page of the documentation)')
