"""The connection of a vLLM server's scheduler to its node's agent: a thread that outlives agents."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from dualpath.core import engine_wire, wire
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.report import EngineStats, Role
from dualpath.node.client import AgentClient
from dualpath.vllm.step import Session

log = logging.getLogger("dualpath.vllm")
POLL_S = 0.5
REPORT_S = 0.5
RETRY_S = 0.5
SERVER_POLL_S = 0.2
SERVER_TIMEOUT_S = 2.0


class Listener(Protocol):
    """Who hears of the agent, in the link's thread."""

    def attached(self, session: Session) -> None:
        """An agent has taken us in."""

    def detached(self) -> None:
        """It is gone."""

    def receive(self, message: object) -> None:
        """It said something."""

    def stats(self, engine: EngineStats) -> EngineStats:
        """What to report to it."""


class AgentLink:
    """`connect` once, then the thread keeps the connection until `close`."""

    def __init__(self, path: Path, hello: engine_wire.EngineHello) -> None:
        self._path = path
        self._hello = hello
        self._client: AgentClient | None = None
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._sessions = 0
        self._listener: Listener
        self._thread = threading.Thread(target=self._run, name="dualpath-link", daemon=True)

    def connect(self, listen: Callable[["AgentLink"], Listener]) -> Role:
        """Attach to the agent, which must be there; the role of its node. ConfigError when it refuses us."""
        client = AgentClient(self._path, self._hello)
        self._listener = listen(self)
        self._attach(client)
        self._thread.start()
        return client.role

    def send(self, message: wire.Message) -> None:
        """To the agent; lost when it is gone, for a new one would not know what it is about."""
        with self._sending:
            if self._client:
                try:
                    self._client.send(message)
                except DualPathError as error:
                    log.warning("%s", error)
                    self._client = None  # the thread sees it, and begins anew

    def close(self) -> None:
        """Leave the agent."""
        self._closed.set()
        self._thread.join(2 * POLL_S)

    def _attach(self, client: AgentClient) -> None:
        self._sessions += 1
        with self._sending:
            self._client = client
        self._listener.attached(Session(self._sessions, client.engine))
        log.info("attached to the agent at %s as %s (%s)", self._path, client.engine, client.role)

    def _run(self) -> None:
        while not self._closed.is_set():
            client = self._client
            if client is not None:
                self._converse(client)
                with self._sending:
                    self._client = None
                client.close()
                self._listener.detached()
                log.warning("lost the agent at %s; waiting for it to come back", self._path)
            self._closed.wait(RETRY_S)
            self._reconnect()

    def _converse(self, client: AgentClient) -> None:
        """Until the agent is gone."""
        reported_s, stats = 0.0, EngineStats(client.engine, client.role)
        try:
            self._await_server(client)
            while self._client is client and not self._closed.is_set():
                for message in client.receive(POLL_S):
                    self._listener.receive(message)
                if time.monotonic() - reported_s >= REPORT_S:
                    reported_s = time.monotonic()
                    self.send(engine_wire.EngineReport(self._listener.stats(stats)))
        except DualPathError as error:
            log.warning("%s", error)

    def _await_server(self, client: AgentClient) -> None:
        """The HTTP server begins to listen after the engine has attached; nobody may call it before."""
        while not (self._closed.is_set() or _answers(f"{self._hello.url}/health")):
            self._closed.wait(SERVER_POLL_S)
        client.send(engine_wire.EngineServes())

    def _reconnect(self) -> None:
        if self._client is None and not self._closed.is_set():
            try:
                self._attach(AgentClient(self._path, self._hello))
            except ConfigError as error:
                log.error("%s", error)  # said again and again: an operator must mend it, requests do not come meanwhile
                self._closed.wait(10 * RETRY_S)
            except DualPathError as error:
                log.warning("%s", error)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=SERVER_TIMEOUT_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False
