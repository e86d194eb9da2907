"""An agent's link to the scheduler, and its trial of the store, against scripted ones."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from dualpath.core import wire
from dualpath.core.errors import ConfigError, StoreUnavailable
from dualpath.core.ids import NodeId
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.node.main import SchedulerLink, probe_store
from dualpath.store.memory import MemoryStore
from dualpath.store.wrapper import StoreWrapper

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 1, 256, 1000, ())


class FakeAgent:
    """What a link needs of an agent; `log` keeps what it was asked to do."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.resetting = asyncio.Event()
        self.resetting.set()

    def hello(self, address: str) -> wire.NodeHello:
        return wire.NodeHello(1, NodeId("p0"), Role.PREFILL, SPEC, address, 8, 1, 1.0)

    def report(self) -> wire.NodeReport:
        return wire.NodeReport(NodeStats(NodeId("p0"), Role.PREFILL), [], 0)

    def announce_engines(self) -> None:
        self.log.append("announce")

    def receive(self, message: Any) -> None:
        self.log.append(type(message).__name__)

    async def reset(self) -> None:
        self.log.append("reset")
        await self.resetting.wait()


class Script:
    """A scheduler's socket and the link under test."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/s.sock"
        self.listen()
        self.agent, self.link = FakeAgent(), SchedulerLink(self.endpoint)
        self.task = asyncio.create_task(self.link.converse(self.agent, "shm:x", 0.02))  # type: ignore[arg-type]
        self.peer = b""

    def listen(self) -> None:
        self.router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(self.endpoint)

    async def next(self, kind: type) -> Any:
        decoder = wire.Decoder(wire.ToScheduler)
        async with asyncio.timeout(5):
            while True:
                self.peer, data = await self.router.recv_multipart()
                if isinstance(message := decoder.decode(data), kind):
                    return message

    async def say(self, message: Any) -> None:
        await self.router.send_multipart([self.peer, message if isinstance(message, bytes) else wire.encode(message)])

    async def logged(self, *expected: str) -> None:
        for _ in range(500):
            if self.agent.log == list(expected):
                return
            await asyncio.sleep(0.005)
        raise AssertionError(self.agent.log)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.link.close()
        self.router.close()


def run(folder: Path, test: Callable[[Script], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            script = Script(folder)
            try:
                await test(script)
            finally:
                await script.close()

    asyncio.run(bounded())


def test_a_node_joins_once_however_often_it_is_accepted(tmp_path: Path) -> None:
    async def test(s: Script) -> None:
        s.link.send(wire.EngineLost("p0/0"))  # type: ignore[arg-type]  # nobody has taken us in: dropped
        await s.next(wire.NodeHello)
        await s.next(wire.NodeHello)
        await s.say(wire.NodeAccepted("a"))
        await s.say(wire.NodeAccepted("a"))
        await s.next(wire.NodeReport)
        await s.logged("announce")

    run(tmp_path, test)


def test_a_scheduler_that_forgot_us_gets_silence_until_all_is_dropped_and_then_a_hello(tmp_path: Path) -> None:
    async def test(s: Script) -> None:
        await s.next(wire.NodeHello)
        await s.say(wire.NodeAccepted("a"))
        await s.next(wire.NodeReport)
        s.agent.resetting.clear()
        await s.say(wire.Rejoin())
        await s.say(wire.Rejoin())
        await s.logged("announce", "reset")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(s.next(wire.NodeHello), 0.2)
        s.agent.resetting.set()
        await s.next(wire.NodeHello)
        await s.say(wire.NodeAccepted("b"))
        await s.logged("announce", "reset", "announce")

    run(tmp_path, test)


def test_a_restarted_scheduler_that_takes_an_old_hello_makes_us_start_anew(tmp_path: Path) -> None:
    async def test(s: Script) -> None:
        await s.next(wire.NodeHello)
        await s.say(wire.NodeAccepted("a"))
        await s.say(wire.NodeAccepted("b"))
        await s.logged("announce", "reset", "announce")

    run(tmp_path, test)


def test_a_lost_connection_begins_a_new_life_even_with_the_same_scheduler(tmp_path: Path) -> None:
    async def test(s: Script) -> None:
        await s.next(wire.NodeHello)
        await s.say(wire.NodeAccepted("a"))
        await s.next(wire.NodeReport)
        s.router.close()
        s.listen()
        await s.next(wire.NodeHello)
        await s.say(wire.StartPull(3))  # of the old life, so it may not come after the reset
        await s.say(wire.NodeAccepted("a"))
        await s.say(wire.NodeAccepted("a"))
        await s.logged("announce", "StartPull", "reset", "announce")

    run(tmp_path, test)


def test_garbage_is_dropped_and_a_refusal_is_the_operators_error(tmp_path: Path) -> None:
    async def test(s: Script) -> None:
        await s.next(wire.NodeHello)
        await s.say(b"\xc1garbage")
        await s.say(wire.NodeAccepted("a"))
        await s.say(wire.StartPull(3))
        await s.logged("announce", "StartPull")
        await s.say(wire.NodeRefused("another model"))
        with pytest.raises(ExceptionGroup) as caught:
            await s.task
        assert caught.group_contains(ConfigError, match="another model")

    run(tmp_path, test)


class BrokenStore(StoreWrapper):
    """Fails or hangs when written."""

    def __init__(self, hang: bool) -> None:
        super().__init__(MemoryStore(LAYOUT))
        self.hang = hang

    async def write(self, key: bytes, block: memoryview) -> None:
        if self.hang:
            await asyncio.Event().wait()
        raise StoreUnavailable("no space left on device")


@pytest.mark.parametrize(("hang", "words"), [(False, "no space left.*--store"), (True, "did not take and return")])
def test_a_store_that_does_not_work_is_the_operators_error(hang: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asyncio.run(probe_store(BrokenStore(hang), SPEC, NodeId("p0"), 0.1))


def test_the_trial_leaves_nothing_in_the_store() -> None:
    store = MemoryStore(LAYOUT)
    assert asyncio.run(probe_store(store, SPEC, NodeId("p0"), 5)) > 0
    assert store.objects == {}
