"""What we are compared with: stock vLLM servers with vLLM's own NixlConnector, without a storage tier.

The client does what a proxy would: prefill first, then decode with what prefill answered. That spares the baseline a
hop and the CPU of a proxy. On few cores it needs another help: NIXL's progress threads spin, and vLLM cannot switch
them off. At a low priority they leave the cores to those who compute.
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from msgspec.structs import replace

from dualpath.bench.client import VLLM_GAPS, Answer, Target, complete
from dualpath.bench.counters import cpu_seconds, family
from dualpath.core.config import Config
from dualpath.core.errors import ServiceError
from dualpath.launch.port import free_port

HOST = "127.0.0.1"
STOP_S = 20.0
SPIN_S = 1.0
SPIN_SHARE = 0.3  # of a core: two of them share one
GIVES_WAY = 15
# With vLLM's own processes for workers these spin, too, for a second after each step; both systems get this
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1", "UCX_TLS": "sm,self,tcp", "UCX_NET_DEVICES": "lo",
}  # fmt: skip
TRANSFER = {
    "kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu",
    "kv_connector_extra_config": {"num_threads": 1},
}  # fmt: skip
TO_DECODE = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
    "remote_host": None, "remote_port": None,
}  # fmt: skip


class NixlServers:
    """`with NixlServers(config, folder) as servers: await servers.complete(prompt, tokens)`; logs lie in `folder`.

    As many prefill and decode servers as the config's topology has, with the same arguments as ours, used in turn.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._prefills = itertools.cycle([engine for engine in config.engines if engine.startswith("p")])
        self._decodes = itertools.cycle([engine for engine in config.engines if engine.startswith("d")])

    def __enter__(self) -> Self:
        try:
            for engine in self._config.engines:
                self._start(engine)
            deadline_s = time.monotonic() + self._config.limits.start_deadline_s
            for engine in self._config.engines:
                self._await(engine, deadline_s)
            self._tame()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def check(self) -> None:
        """ServiceError when a server has died."""
        for engine, process in self._processes.items():
            if process.poll() is not None:
                raise ServiceError(f"server {engine} died:\n{self._log(engine).read_text()[-2000:]}")

    def pause(self) -> None:
        """Stand still, so that nothing of them runs beside another system."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far; see counters.cpu_seconds."""
        return cpu_seconds({f"engine {name}": process.pid for name, process in self._processes.items()})

    async def complete(self, prompt: list[int], max_tokens: int) -> Answer:
        """As bench.client.complete; the time counts from the call of the prefill server."""
        sent_s = time.monotonic()
        params = await self._prefill(prompt)
        answer = await complete(self._decode_target(params), prompt, max_tokens)
        return replace(answer, sent_s=sent_s)

    async def _prefill(self, prompt: list[int]) -> dict[str, Any]:
        port = self._ports[next(self._prefills)]
        body = {"model": self._config.served_name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        try:
            async with httpx.AsyncClient(timeout=self._config.limits.request_deadline_s, trust_env=False) as http:
                url = f"http://{HOST}:{port}/v1/completions"
                response = await http.post(url, json={**body, "kv_transfer_params": TO_DECODE})
                response.raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceError(f"prefill failed: {error or repr(error)}") from None
        params: dict[str, Any] = response.json()["kv_transfer_params"]
        return params

    def _decode_target(self, params: dict[str, Any]) -> Target:
        port, fields = self._ports[next(self._decodes)], {**VLLM_GAPS, "kv_transfer_params": params}
        return Target(HOST, port, self._config.served_name, self._config.limits.request_deadline_s, fields)

    def _start(self, engine: str) -> None:
        config = self._config
        self._ports[engine] = port = free_port(HOST, 0)
        command = [
            config.engine.python, "-m", "vllm.entrypoints.openai.api_server", "--model", config.model.path,
            "--served-model-name", config.served_name, "--host", HOST, "--port", str(port),
            "--kv-transfer-config", json.dumps(TRANSFER), "--disable-hybrid-kv-cache-manager",
            "--disable-uvicorn-access-log", *shlex.split(config.engine.arguments),
        ]  # fmt: skip
        environment = {
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // len(config.engines))),  # as ours have
            "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port(HOST, 0)),
        }  # fmt: skip
        with self._log(engine).open("wb") as log:
            self._processes[engine] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, **environment},
                process_group=0,  # but this session: the kernel weighs sessions, whatever their threads' priorities
            )

    def _tame(self) -> None:
        """Threads that spin in an idle server give way from now on."""
        time.sleep(2 * SPIN_S)  # vLLM's own workers spin for a second after their last work
        before = self._thread_ticks()
        time.sleep(SPIN_S)
        for thread, ticks in self._thread_ticks().items():
            if ticks - before.get(thread, ticks) > SPIN_SHARE * SPIN_S * os.sysconf("SC_CLK_TCK"):
                os.setpriority(os.PRIO_PROCESS, thread, GIVES_WAY)

    def _thread_ticks(self) -> dict[int, int]:
        """CPU time of all threads of all servers."""
        found = {}
        for process in self._processes.values():
            for pid in family(process.pid):
                for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
                    fields = stat.read_text().rpartition(")")[2].split()
                    found[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
        return found

    def _log(self, engine: str) -> Path:
        return self._folder / f"nixl-{engine.replace('/', '-')}.log"

    def _await(self, engine: str, deadline_s: float) -> None:
        while time.monotonic() < deadline_s:
            self.check()
            try:
                if httpx.get(f"http://{HOST}:{self._ports[engine]}/health", timeout=2, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise ServiceError(f"server {engine} was not ready in time:\n{self._log(engine).read_text()[-2000:]}")

    def _signal(self, sig: signal.Signals) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, sig)

    def _stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
