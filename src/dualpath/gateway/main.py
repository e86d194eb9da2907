"""Running the gateway as a server."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from dualpath.core.address import is_loopback, tcp_endpoint
from dualpath.core.config import CONTROL, Config
from dualpath.core.errors import ConfigError
from dualpath.core.model import ModelSpec
from dualpath.core.secret import cluster_key
from dualpath.gateway.app import build_app
from dualpath.gateway.desk import Limits
from dualpath.gateway.passthrough import build_passthrough
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.scheduler.client import SchedulerClient
from dualpath.scheduler.zmq_client import ZmqSchedulerClient

BACKLOG = 1024
SHUTDOWN_S = 5  # for requests under way when the server is told to stop


async def run_gateway(
    client: SchedulerClient, spec: ModelSpec, host: str = "127.0.0.1", port: int = 8000, *,
    api_key: str | None = None, limits: Limits | None = None,
    on_listening: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT, SIGTERM or cancellation. Port 0 takes a free one; `on_listening` is told which.

    ConfigError: busy port, unknown host, no tokenizer, or another host than loopback without an API key.
    """
    _check_key(host, api_key)
    app = build_app(client, Tokenizer.load(Path(spec.path)), api_key=api_key, limits=limits)
    await serve_app(app, host, port, on_listening)


async def serve_app(app: Starlette, host: str, port: int, on_listening: Callable[[int], None] | None = None) -> None:
    """Serve an app until SIGINT, SIGTERM or cancellation."""
    with listen(host, port) as listener:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )  # fmt: skip
        if on_listening:
            on_listening(listener.getsockname()[1])
        await _serve(_Server(config), listener)


def _check_key(host: str, api_key: str | None) -> None:
    if api_key == "":
        raise ConfigError("the API key is empty; give one of some length or none at all")
    if api_key is None and not is_loopback(host):
        raise ConfigError(f"host {host} is reachable from other machines; give an API key, or use host 127.0.0.1")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError with the mend when that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OverflowError:
        raise ConfigError(f"port {port} does not exist; ports go from 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use; choose another port or stop what uses it") from None
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another host or port"
        ) from None


class _Server(uvicorn.Server):
    """uvicorn raises a signal again when it has ended, which kills the process before its own clean-up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server, and nothing else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run the server; when cancelled let it end its requests first, within its own bound."""
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        await task
        raise


def run(config: Config) -> None:
    """Run the gateway of a configured cluster until SIGTERM."""
    asyncio.run(_run(config))


def tokens_endpoint(config: Config) -> str:
    """Where engines send tokens: at control's address when they are on other hosts, else a socket in the run folder."""
    address = config.host_of(CONTROL).address
    if not is_loopback(address):
        return tcp_endpoint(address, "*")
    path = config.run_path / "gateway-tokens.sock"
    path.unlink(missing_ok=True)
    return f"ipc://{path}"


async def _run(config: Config) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a call to an engine otherwise
    deadline_s = config.limits.start_deadline_s
    key = cluster_key(config.network.key_file)
    client = await ZmqSchedulerClient.connect(config.scheduler_endpoint, tokens_endpoint(config), deadline_s, key)
    limits = Limits(
        max_concurrent_requests=config.limits.max_concurrent_requests,
        event_timeout_s=config.limits.request_deadline_s,
    )
    host, port, api_key = config.network.host, config.network.port, config.network.api_key or None
    try:
        if config.engine.kind == "reference":
            await run_gateway(client, client.spec, host, port, api_key=api_key, limits=limits)
        else:
            _check_key(host, api_key)
            await serve_app(build_passthrough(client, api_key=api_key, limits=limits), host, port)
    finally:
        await client.close()
