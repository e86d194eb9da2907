"""Does the transfer of cached KV hide behind the computation? One slow link, measured under vLLM.

    python -m dualpath.bench.vllm_overlap --vllm-python .venv-vllm/bin/python --model smollm2

A prompt of `cached` stored tokens, all read by the decode node, and `new` ones. Time to first token over a link of
`cnic`, against the same over a link without limit (computation) and the bytes over the link's rate (transfer).
"""

import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import typer

from dualpath.bench.nixl_servers import ENVIRONMENT
from dualpath.core.config import Config
from dualpath.core.config_file import load_config
from dualpath.core.errors import ServiceError
from dualpath.core.report import ClusterReport
from dualpath.core.units import parse_rate
from dualpath.launch.local import LocalCluster

SERVER = "--dtype float32 --enforce-eager --block-size 64 --no-enable-prefix-caching --max-num-seqs 4"
TURNS = 24  # of which the round robin gives the decode node every other one


class Overlap(msgspec.Struct):
    """Medians in seconds."""

    cached_tokens: int
    new_tokens: int
    layer_bytes: int  # that came over the link for one request
    transfer_s: float
    compute_s: float
    ttft_s: float

    @property
    def over_longer(self) -> float:
        """TTFT over the longer of the two; their sum over the longer would be no overlap at all."""
        return self.ttft_s / max(self.transfer_s, self.compute_s)


def main(
    vllm_python: Annotated[str, typer.Option(help="Python of the environment with vLLM and dualpath.")],
    model: Annotated[str, typer.Option(help="As for dualpath up.")] = "smollm2",
    cnic: Annotated[str, typer.Option(help="Rate of the slow link.")] = "30MB/s",
    cached: Annotated[int, typer.Option(help="Stored tokens of the prompt.")] = 1024,
    new: Annotated[int, typer.Option(help="New tokens of the prompt.")] = 256,
    repeats: Annotated[int, typer.Option(help="Measured requests.")] = 5,
) -> None:
    """Measure, and print one JSON line."""
    rate = parse_rate(cnic)
    assert rate is not None
    with tempfile.TemporaryDirectory(prefix="dualpath-overlap-") as folder:
        fast, _ = _ttft(_config(vllm_python, model, "", folder, cached + new), cached, new, repeats)
        slow, moved = _ttft(_config(vllm_python, model, cnic, folder, cached + new), cached, new, repeats)
    found = Overlap(cached, new, moved, moved / rate, fast, slow)
    print(msgspec.json.encode({**msgspec.structs.asdict(found), "over_longer": found.over_longer}).decode())


def _config(python: str, model: str, cnic: str, folder: str, tokens: int) -> Config:
    arguments = f"{SERVER} --max-model-len {tokens + 64} --max-num-batched-tokens {tokens + 64}"
    os.environ.update(ENVIRONMENT)
    overrides: dict[str, dict[str, Any]] = {
        "model": {"name": model},
        "engine": {"kind": "vllm", "python": python, "arguments": arguments},
        "storage": {"path": str(Path(folder) / f"store-{cnic.replace('/', '-')}"), "cnic": cnic},
        "scheduling": {"read_policy": "round-robin"},
        "network": {"port": 0},
    }
    return load_config(None, overrides)


def _ttft(config: Config, cached: int, new: int, repeats: int) -> tuple[float, int]:
    """Median time to first token of requests whose hit the decode node read; bytes of layers that came for one."""
    rng = random.Random(config.storage.cnic)  # a workload of its own: what another run stored would be a hit
    prefix = [rng.randrange(32, 250) for _ in range(cached)]
    times, moved = [], 0
    with LocalCluster(config) as running, httpx.Client(base_url=running.url, timeout=300, trust_env=False) as http:
        _first_token_s(http, running.config.served_name, prefix)  # to be stored
        for _ in range(TURNS):
            before = _settled(http)
            seconds = _first_token_s(
                http, running.config.served_name, prefix + [rng.randrange(32, 250) for _ in range(new)]
            )
            after = _settled(http)
            layers = _layers_in(after) - _layers_in(before)
            if layers:  # the other turns were read by the prefill node itself
                times.append(seconds)
                moved = layers
            if len(times) > repeats:
                return statistics.median(times[1:]), moved  # the first one warms up
    raise ServiceError("the decode node read too few of the hits; is the round robin broken?")


def _first_token_s(http: httpx.Client, model: str, prompt: list[int]) -> float:
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": True, "ignore_eos": True}
    start_s = time.monotonic()
    first_s = 0.0
    with http.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line and not first_s:
                first_s = time.monotonic() - start_s
    return first_s


def _settled(http: httpx.Client) -> ClusterReport:
    """The state when nothing runs or is written any more."""
    while True:
        time.sleep(1.2)  # agents report twice a second
        report = msgspec.json.decode(http.get("/cluster").content, type=ClusterReport)
        if not (report.pending_writes or report.running_requests):
            return report


def _layers_in(report: ClusterReport) -> int:
    """Bytes of layers that came to the prefill node."""
    return sum(node.lane_bytes.get("layers_in", 0) for node in report.nodes if node.role == "prefill")


if __name__ == "__main__":
    typer.run(main)
