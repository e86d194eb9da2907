"""`dualpath up`: a local cluster in the foreground."""

import json
import shlex
import time

from rich.console import Console

from dualpath.core.config import Config
from dualpath.launch.local import LocalCluster
from dualpath.launch.signals import end_like_ctrl_c

CHECK_S = 0.2


def up(config: Config) -> None:
    """Start a cluster, say how to use it, serve until Ctrl-C or SIGTERM, leave nothing behind."""
    console = Console(stderr=True, highlight=False)
    end_like_ctrl_c()
    cluster = LocalCluster(config, say=lambda text: console.print(text, markup=False))
    try:
        _start(cluster, console)
        while True:
            cluster.check()
            time.sleep(CHECK_S)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        cluster.stop()


def _start(cluster: LocalCluster, console: Console) -> None:
    start_s = time.monotonic()
    with console.status("starting") as status:
        cluster.start()
        cluster.wait_ready(lambda missing: status.update(f"starting; waiting for {', '.join(missing)}"))
    seconds = time.monotonic() - start_s
    print(f"ready after {seconds:.1f} s: {cluster.url}/v1   try: {_example(cluster)}", flush=True)


def _example(cluster: LocalCluster) -> str:
    """A request to paste into a shell; the key, if there is one, stays out of it."""
    body = {
        "model": cluster.config.served_name,
        "messages": [{"role": "user", "content": "What is a cache?"}],
    }
    key = ' -H "authorization: Bearer $DUALPATH_API_KEY"' if cluster.config.network.api_key else ""
    return (
        f"curl {cluster.url}/v1/chat/completions -H 'content-type: application/json'{key}"
        f" -d {shlex.quote(json.dumps({**body, 'max_tokens': 64}))}"
    )
