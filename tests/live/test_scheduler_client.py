"""The gateway's client against a scripted scheduler and engine over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from dualpath.core import wire
from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.ids import RequestId
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.core.request import Done, FinishReason, Sampling, Submission, Timeline, Tokens
from dualpath.scheduler import zmq_client
from dualpath.scheduler.zmq_client import ZmqSchedulerClient

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 1, 256, 1000, ())


def submission(name: str = "r") -> Submission:
    return Submission(RequestId(name), b"\1\0\0\0", b"root", (), 8, Sampling())


class ScriptedScheduler:
    """Answers hellos and GetReport; tests read the rest from `asked` and say what comes next."""

    def __init__(self, endpoint: str) -> None:
        context = zmq.asyncio.Context.instance()
        self.endpoint = endpoint
        self.listen()
        self.push = context.socket(zmq.PUSH)
        self.push.setsockopt(zmq.LINGER, 0)
        self.asked: asyncio.Queue[Any] = asyncio.Queue()
        self.incarnation = "first"
        self.gateway = b""
        self.task = asyncio.create_task(self.serve())

    def listen(self) -> None:
        self.router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.router.bind(self.endpoint)

    async def lose_connections(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.router.close()
        self.listen()
        self.task = asyncio.create_task(self.serve())

    async def serve(self) -> None:
        decoder = wire.Decoder(wire.ToScheduler)
        while True:
            self.gateway, data = await self.router.recv_multipart()
            message = decoder.decode(data)
            if isinstance(message, wire.GatewayHello):
                await self.say(wire.Welcome(self.incarnation, SPEC, 900))
            elif isinstance(message, wire.GetReport):
                await self.say(wire.Report(ClusterReport(ready=True, finished_requests=3)))
            else:
                self.asked.put_nowait(message)

    async def say(self, message: Any) -> None:
        await self.router.send_multipart([self.gateway, wire.encode(message)])

    async def next(self, kind: type) -> Any:
        message = await asyncio.wait_for(self.asked.get(), 5)
        assert isinstance(message, kind), message
        return message

    async def tokens(self, start: int, ids: list[int], name: str = "r") -> None:
        await self.push.send(wire.encode(Tokens(RequestId(name), start, ids, [1.0] * len(ids))))

    async def done(self, count: int, name: str = "r") -> None:
        await self.say(Done(RequestId(name), FinishReason.LENGTH, count, 0, Timeline()))

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.router.close()
        self.push.close()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[ZmqSchedulerClient, ScriptedScheduler]]:
    endpoint = f"ipc://{folder}/s.sock"
    scheduler = ScriptedScheduler(endpoint)
    client = await ZmqSchedulerClient.connect(endpoint, f"ipc://{folder}/gateway-tokens.sock", 5)
    scheduler.push.connect(f"ipc://{folder}/gateway-tokens.sock")
    try:
        yield client, scheduler
    finally:
        await client.close()
        await scheduler.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def collect(client: ZmqSchedulerClient, name: str = "r") -> tuple[list[int], Done | None]:
    ids: list[int] = []
    done = None
    async for event in client.submit(submission(name)):
        if isinstance(event, Done):
            done = event
        else:
            assert event.index == len(ids)
            ids += event.ids
    return ids, done


def test_done_waits_for_tokens_that_are_still_on_their_way(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.done(4)
            await scheduler.tokens(2, [12, 13])
            await scheduler.tokens(0, [10])
            await asyncio.sleep(0.05)
            assert not answer.done()
            await scheduler.tokens(0, [10, 11])
            ids, done = await answer
            assert ids == [10, 11, 12, 13]
            assert done and done.completion_tokens == 4
            assert scheduler.asked.empty(), "a served request is not cancelled"

    run(test)


def test_lost_last_tokens_are_an_error_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_client, "TOKENS_DEADLINE_S", 0.1)

    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.tokens(0, [10])
            await scheduler.done(2)
            with pytest.raises(ServiceError, match="lost"):
                await answer

    run(test)


@pytest.mark.parametrize(("by_request", "kind"), [(True, RequestError), (False, ServiceError)])
def test_refusals_say_whose_fault_it_is(tmp_path: Path, by_request: bool, kind: type[Exception]) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.say(wire.Refused(RequestId("r"), "no", by_request))
            with pytest.raises(kind, match="no"):
                await answer
            assert scheduler.asked.empty()

    run(test)


def test_leaving_early_cancels(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            events = client.submit(submission())
            first = asyncio.ensure_future(anext(events))
            await scheduler.next(wire.Submit)
            await scheduler.tokens(0, [10])
            await first
            await events.aclose()
            assert (await scheduler.next(wire.Cancel)).request == "r"
            await scheduler.tokens(1, [11])  # late tokens belong to nobody
            assert (await client.report()).finished_requests == 3

    run(test)


def test_a_restarted_scheduler_gets_the_requests_again_and_the_client_each_token_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.tokens(0, [10, 11])
            scheduler.incarnation = "second"
            assert (await scheduler.next(wire.Submit)).submission.request == "r"
            await scheduler.tokens(0, [10, 11, 12])
            await scheduler.done(3)
            assert (await answer)[0] == [10, 11, 12]

    run(test)


def test_an_end_that_a_lost_connection_took_comes_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.tokens(0, [10, 11])
            await scheduler.lose_connections()  # with the same incarnation: the network's fault
            assert (await scheduler.next(wire.Submit)).submission.request == "r"
            await scheduler.tokens(0, [10, 11])
            await scheduler.done(2)
            assert (await answer)[0] == [10, 11]

    run(test)


def test_a_scheduler_that_never_comes_back_ends_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_client, "SCHEDULER_SILENCE_S", 0.2)

    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            scheduler.task.cancel()
            with pytest.raises(ServiceError, match="has not answered"):
                await answer

    run(test)


def test_garbage_does_not_end_the_client_and_closing_ends_requests(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as (client, scheduler):
            answer = asyncio.create_task(collect(client))
            await scheduler.next(wire.Submit)
            await scheduler.router.send_multipart([scheduler.gateway, b"\xc1garbage"])
            await scheduler.push.send(b"\xc1garbage")
            await scheduler.push.send(wire.encode(wire.Refused(RequestId("r"), "from an engine?", True)))
            assert (await client.report()).ready
            assert not answer.done()
            await client.close()
            with pytest.raises(ServiceError, match="ending"):
                await answer

    run(test)


def test_without_a_scheduler_connecting_fails_in_time(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ServiceError, match="no scheduler answers"):
            await ZmqSchedulerClient.connect(f"ipc://{tmp_path}/none.sock", f"ipc://{tmp_path}/t.sock", 0.2)

    run(test)


def test_messages_sent_before_there_is_a_scheduler_arrive_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        endpoint = f"ipc://{tmp_path}/late.sock"
        client = ZmqSchedulerClient(endpoint, f"ipc://{tmp_path}/t.sock")
        for number in range(2000):
            client._send(wire.Cancel(RequestId(str(number))))
        scheduler = ScriptedScheduler(endpoint)
        for number in range(2000):
            assert (await scheduler.next(wire.Cancel)).request == str(number)
        await client.close()
        await scheduler.close()

    run(test)
