"""The live driver of the cluster machine: one ROUTER socket, the clock, the prefix index.

Messages become events, commands become messages; what the machine must not see (keys, tokens, addresses) is added here.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from functools import singledispatchmethod
from pathlib import Path

import zmq
import zmq.asyncio

from dualpath.control.sockets import Door
from dualpath.core import wire
from dualpath.core.config import Config
from dualpath.core.errors import ProtocolError
from dualpath.core.ids import EngineId, NodeId, RequestId, node_of
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.core.request import Done
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, Settings
from dualpath.scheduler import members_report, outbox
from dualpath.scheduler.event_log import EventLog, RecordedMachine
from dualpath.scheduler.index import Held, PrefixIndex
from dualpath.scheduler.requests import LiveRequest
from dualpath.scheduler.roster import Roster

log = logging.getLogger("dualpath.scheduler")
_TICK_S = 0.2
_GATEWAY_LEASE_S = 60.0


class Scheduler:
    """One per cluster. `index` comes filled with the store's keys."""

    def __init__(self, config: Config, spec: ModelSpec, index: PrefixIndex) -> None:
        self._spec = spec
        self._index = index
        settings = Settings(
            block_tokens=spec.layout.block_tokens,
            prefill_policy=config.scheduling.prefill_policy,
            read_policy=config.scheduling.read_policy,
            overtake_limit=config.scheduling.overtake_limit,
            lease_ns=int(config.limits.lease_s * 1e9),
            waiting_deadline_ns=int(config.limits.request_deadline_s * 1e9),
            release_deadline_ns=int(config.limits.transfer_deadline_s * 1e9),
            first_grant=time.time_ns() // 1000,  # agents outlive us, and with them what earlier grants still do
        )
        self._event_log = EventLog(Path(config.log.events)) if config.log.events else None
        self._machine = (
            RecordedMachine(settings, self._look_up, self._event_log)
            if self._event_log
            else ClusterMachine(settings, self._look_up)
        )
        self._expected = config
        self._incarnation = secrets.token_hex(8)
        self._socket: zmq.asyncio.Socket
        self._roster = Roster()
        self._requests: dict[RequestId, LiveRequest] = {}
        self._by_grant: dict[int, LiveRequest] = {}
        self._finished = 0
        self._failed = 0
        self._sender = b""
        self._gateways: dict[bytes, int] = {}  # when each was last heard

    async def run(self, endpoint: str, key: bytes | None = None) -> None:
        """Serve until cancelled; `key`: the cluster's. ConfigError when the endpoint cannot be used."""
        with contextlib.closing(Door(zmq.ROUTER, key)) as door:
            self._socket = door.socket
            self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            log.info("scheduler listens at %s", door.bind(endpoint))
            try:
                await asyncio.gather(door.admit(), self._receive(), self._tick())
            finally:
                if self._event_log:
                    self._event_log.close()

    async def _receive(self) -> None:
        decoder = wire.Decoder(wire.ToScheduler)
        while True:
            self._sender, *body = await self._socket.recv_multipart()
            try:
                self._on(decoder.decode(b"".join(body)))
            except ProtocolError as error:
                log.warning("dropped a message: %s", error)
            except Exception:  # one message must not take the cluster with it
                log.exception("could not handle a message")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._cancel_orphans()
            due = self._machine.next_timeout_ns()
            now = time.monotonic_ns()
            if due is not None and due <= now:
                for node in self._machine.members.expired(now):
                    log.warning("node %s is silent; its work starts again elsewhere", node)
                    self._forget_node(node)
                self._machine.on_timeout(now_ns=now)
                self._carry_out()

    def _cancel_orphans(self) -> None:
        """A gateway that is gone for good takes its requests with it: its clients are gone too."""
        silent_ns = time.monotonic_ns() - int(_GATEWAY_LEASE_S * 1e9)
        for gateway in [g for g, heard_ns in self._gateways.items() if heard_ns < silent_ns]:
            del self._gateways[gateway]
            orphans = [r for r, live in self._requests.items() if live.gateway == gateway]
            log.warning("a gateway is gone; cancelling its %d requests", len(orphans))
            for request in orphans:
                self._end(request)

    def _sender_node(self) -> NodeId:
        """The node that sent this message; ProtocolError when it is none of ours (any more)."""
        node = self._roster.node_of(self._sender)
        if node is None:
            raise ProtocolError("its node has not joined, or was lost")
        return node

    # messages to events ------------------------------------------------------------------------------------------

    @singledispatchmethod
    def _on(self, message: wire.Message) -> None:
        raise ProtocolError(f"{type(message).__name__} is not for the scheduler")

    @_on.register
    def _gateway_hello(self, message: wire.GatewayHello) -> None:
        if message.version != wire.PROTOCOL_VERSION:
            raise ProtocolError(f"a gateway speaks protocol {message.version}, we speak {wire.PROTOCOL_VERSION}")
        self._gateways[self._sender] = time.monotonic_ns()
        self._welcome()

    def _welcome(self) -> None:
        welcome = wire.Welcome(self._incarnation, self._spec, self._max_request_tokens(), self._roster.decode_urls)
        self._send(self._sender, welcome)

    @_on.register
    def _submit(self, message: wire.Submit) -> None:
        submission = message.submission
        if submission.request in self._requests:
            return
        self._gateways.setdefault(self._sender, time.monotonic_ns())
        live = LiveRequest(submission, message.reply_to, self._sender, time.monotonic_ns())
        self._requests[submission.request] = live
        self._feed(ev.RequestArrived(submission.request, submission.prompt_tokens, submission.max_tokens))

    @_on.register
    def _cancel(self, message: wire.Cancel) -> None:
        self._end(message.request)

    def _end(self, request: RequestId) -> None:
        if self._forget(request):
            self._feed(ev.RequestCancelled(request))

    @_on.register
    def _get_report(self, message: wire.GetReport) -> None:
        self._welcome()  # who sees the cluster ready must not have the limits of before
        self._send(self._sender, wire.Report(self.report()))

    @_on.register
    def _node_hello(self, message: wire.NodeHello) -> None:
        refusal = self._refuses(message)
        if refusal:
            log.error("refused node %s: %s", message.node, refusal)
            self._send(self._sender, wire.NodeRefused(refusal))
            return
        self._forget_node(message.node)
        self._roster.join(message.node, message.role, self._sender, message.address)
        self._send(self._sender, wire.NodeAccepted(self._incarnation))
        rate = message.read_rate_bytes_per_s / self._spec.layout.kv_bytes_per_token
        self._feed(ev.NodeJoined(message.node, message.role, message.slots, message.write_slots, rate))
        log.info("node %s joined: %s, %d slots", message.node, message.role, message.slots)

    def _refuses(self, message: wire.NodeHello) -> str | None:
        if message.version != wire.PROTOCOL_VERSION:
            return f"it speaks protocol {message.version}, we speak {wire.PROTOCOL_VERSION}; install the same version"
        if message.spec.layout != self._spec.layout:
            return (
                f"its layout is {message.spec.layout}, this cluster's is {self._spec.layout}; give all roles the same "
                "model and settings"
            )
        return None

    @_on.register
    def _node_report(self, message: wire.NodeReport) -> None:
        node = self._roster.node_of(self._sender)
        if node is None:
            self._send(self._sender, wire.Rejoin())  # we restarted, or its lease ended
            return
        self._roster.note(node, message.stats, message.engines)
        layout = self._spec.layout
        seen_all = message.grants_seen == self._roster.opened(node)
        queue = message.reads_left * layout.block_tokens if seen_all else None
        rate = message.stats.read_rate_bytes_per_s / layout.kv_bytes_per_token
        self._feed(ev.NodeReported(node, rate, queue))
        for engine in message.engines:
            if engine.process_tokens_per_s:
                rates = (engine.process_tokens_per_s, engine.compute_tokens_per_s)
                self._feed(ev.EngineReported(engine.engine, *rates))

    @_on.register
    def _engine_joined(self, message: wire.EngineJoined) -> None:
        self._check_engine(message.engine)
        log.info("engine %s joined", message.engine)
        self._roster.join_engine(message.engine, message.url)
        self._feed(ev.EngineJoined(message.engine, message.kv_tokens, message.process_tokens_per_s))

    @_on.register
    def _engine_lost(self, message: wire.EngineLost) -> None:
        self._check_engine(message.engine)
        log.warning("engine %s is lost", message.engine)
        self._roster.lose_engine(message.engine)
        self._feed(ev.EngineLost(message.engine))

    def _check_engine(self, engine: EngineId) -> None:
        if node_of(engine) != self._sender_node():
            raise ProtocolError(f"{engine} is no engine of the node that speaks of it")

    @_on.register
    def _reads_advanced(self, message: wire.ReadsAdvanced) -> None:
        node, live = self._sender_node(), self._by_grant.get(message.grant)
        if live and live.assign:
            if node == node_of(live.assign.prefill):
                live.timeline.read_bytes_prefill += message.bytes_read
            elif node == node_of(live.assign.decode):
                live.timeline.read_bytes_decode += message.bytes_read
            else:
                live.timeline.read_bytes_relay += message.bytes_read
        self._feed(ev.ReadsAdvanced(message.grant, node, message.blocks))

    @_on.register
    def _reads_finished(self, message: wire.ReadsFinished) -> None:
        node, live = self._sender_node(), self._by_grant.get(message.grant)
        if live and live.assign:
            if node == node_of(live.assign.prefill):
                self._stamp(message.grant, "prefill_side_loaded_ns")
            elif node == node_of(live.assign.decode):
                self._stamp(message.grant, "decode_side_loaded_ns")
            live.timeline.retained_bytes += message.retained_bytes
        self._feed(ev.ReadsFinished(message.grant, node))

    @_on.register
    def _copy_finished(self, message: wire.CopyFinished) -> None:
        self._sender_node()
        self._feed(ev.CopyFinished(message.grant))

    @_on.register
    def _fetch_finished(self, message: wire.FetchFinished) -> None:
        self._sender_node()
        self._stamp(message.grant, "decode_side_loaded_ns")
        self._feed(ev.FetchFinished(message.grant))

    @_on.register
    def _step_failed(self, message: wire.StepFailed) -> None:
        self._sender_node()
        log.warning("grant %d failed: %s", message.grant, message.cause)
        live = self._by_grant.get(message.grant)
        if live:
            live.timeline.recompute_causes.append(message.cause)
        self._feed(ev.StepFailed(message.grant, message.cause))

    @_on.register
    def _block_lost(self, message: wire.BlockLost) -> None:
        self._sender_node()
        self._index.forget([message.key])

    @_on.register
    def _block_held(self, message: wire.BlockHeld) -> None:
        node = self._sender_node()
        if message.grant in self._machine.attempts:
            self._index.hold(message.key, Held(node, message.slot, message.grant))
            self._feed(ev.BlockHeld(message.grant, message.slot))

    @_on.register
    def _block_written(self, message: wire.BlockWritten) -> None:
        node = self._sender_node()
        self._index.written(message.key, node, message.slot, durable=message.durable)
        self._feed(ev.BlockWritten(node, message.slot))

    @_on.register
    def _released(self, message: wire.Released) -> None:
        self._feed(ev.Released(message.grant, self._sender_node()))

    @_on.register
    def _prefill_started(self, message: wire.PrefillStarted) -> None:
        self._sender_node()
        self._stamp(message.grant, "prefill_started_ns")
        self._feed(ev.PrefillStarted(message.grant))

    @_on.register
    def _prefill_finished(self, message: wire.PrefillFinished) -> None:
        self._sender_node()
        self._stamp(message.grant, "prefill_finished_ns")
        live = self._by_grant.get(message.grant)
        if live and self._machine.is_prefilling(message.grant):
            live.first_token = message.token
            live.timeline.layer_wait_ns = message.layer_wait_ns
            self._persist_prompt(live)
        self._feed(ev.PrefillFinished(message.grant, message.reason))

    def _persist_prompt(self, live: LiveRequest) -> None:
        """New prompt blocks are complete on the decode node: held from now on, durable later."""
        assert live.assign is not None
        node, message = node_of(live.assign.decode), outbox.persist_prompt(live, self._index)
        if not message.items or not self._roster.has(node):
            return
        for item in message.items:
            self._index.hold(item.key, Held(node, item.slot, message.grant))
            self._machine.receive(ev.BlockHeld(message.grant, item.slot), now_ns=time.monotonic_ns())
        self._send_node(node, message)

    @_on.register
    def _decode_started(self, message: wire.DecodeStarted) -> None:
        self._sender_node()
        self._stamp(message.grant, "decode_started_ns")
        self._feed(ev.DecodeStarted(message.grant))

    @_on.register
    def _decode_finished(self, message: wire.DecodeFinished) -> None:
        self._sender_node()
        self._feed(ev.DecodeFinished(message.grant, message.reason, message.completion_tokens))

    def _stamp(self, grant: int, name: str) -> None:
        live = self._by_grant.get(grant)
        if live:
            setattr(live.timeline, name, live.since_arrival(time.monotonic_ns()))

    # commands to messages ----------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        self._machine.receive(event, now_ns=time.monotonic_ns())
        self._carry_out()

    def _carry_out(self) -> None:
        for command in self._machine.drain():
            self._do(command)

    @singledispatchmethod
    def _do(self, command: ev.Command) -> None:
        raise TypeError(f"no such command: {command!r}")

    @_do.register
    def _assign(self, command: ev.Assign) -> None:
        live = self._requests[command.request]
        if live.assign:
            self._by_grant.pop(live.assign.grant, None)
        live.begin(command, time.monotonic_ns())
        self._by_grant[command.grant] = live
        self._open(node_of(command.prefill), outbox.open_prefill(command, live, self._roster.addresses))
        self._open(node_of(command.decode), outbox.open_decode(command, live, self._roster.addresses))
        if command.relay:
            self._open(command.relay.node, outbox.open_relay(command, command.relay, live))

    def _open(self, node: NodeId, message: wire.OpenPrefill | wire.OpenDecode | wire.OpenRelay) -> None:
        self._roster.count_open(node)
        self._send_node(node, message)

    @_do.register
    def _start_pull(self, command: ev.StartPull) -> None:
        self._send_node(command.node, wire.StartPull(command.grant))

    @_do.register
    def _start_fetch(self, command: ev.StartFetch) -> None:
        live = self._by_grant[command.grant]
        self._send_node(command.node, outbox.start_fetch(command, live, self._roster.addresses))

    @_do.register
    def _start_prefill(self, command: ev.StartPrefill) -> None:
        live = self._by_grant[command.grant]
        message = outbox.start_prefill(command, live, self._spec.layout.block_tokens)
        self._send_node(node_of(command.engine), message)

    @_do.register
    def _start_decode(self, command: ev.StartDecode) -> None:
        self._send_node(node_of(command.engine), outbox.start_decode(command, self._by_grant[command.grant]))

    @_do.register
    def _release(self, command: ev.Release) -> None:
        self._send_node(command.node, wire.Release(command.grant))

    @_do.register
    def _finish_request(self, command: ev.FinishRequest) -> None:
        self._finished += 1
        live = self._forget(command.request)
        assert live and live.assign
        live.timeline.finished_ns = live.since_arrival(time.monotonic_ns())
        cached = live.assign.hit_blocks * self._spec.layout.block_tokens
        done = Done(command.request, command.reason, command.completion_tokens, cached, live.timeline)
        self._send(live.gateway, done)

    @_do.register
    def _fail_request(self, command: ev.FailRequest) -> None:
        self._failed += 1
        live = self._forget(command.request)
        if live:
            self._send(live.gateway, wire.Refused(command.request, command.message, command.by_request))

    # the rest ----------------------------------------------------------------------------------------------------

    def _look_up(self, request: RequestId) -> Hit:
        return self._index.look_up(self._requests[request].submission.keys)

    def _forget(self, request: RequestId) -> LiveRequest | None:
        live = self._requests.pop(request, None)
        if live and live.assign:
            self._by_grant.pop(live.assign.grant, None)
        return live

    def _forget_node(self, node: NodeId) -> None:
        self._index.lose_node(node)
        self._roster.leave(node)

    def _max_request_tokens(self) -> int:
        capacity = self._machine.members.request_capacity_tokens(self._spec.layout.block_tokens)
        return min(capacity or self._spec.max_context_tokens, self._spec.max_context_tokens)

    def _send_node(self, node: NodeId, message: wire.Message) -> None:
        identity = self._roster.identity(node)
        if identity is not None:
            self._send(identity, message)

    def _send(self, identity: bytes, message: wire.Message | Done) -> None:
        # An unroutable message (peer gone) is dropped by ZeroMQ; leases and resubmission notice the loss.
        self._socket.send_multipart([identity, wire.encode(message)])

    def report(self) -> ClusterReport:
        """The cluster's state now."""
        machine, members = self._machine, self._machine.members
        missing = members_report.missing(self._expected, members)
        return ClusterReport(
            ready=not missing, missing=missing, nodes=members_report.nodes(members, self._roster),
            engines=members_report.engines(members, self._roster), waiting_requests=len(machine.waiting),
            running_requests=len(self._requests) - len(machine.waiting), finished_requests=self._finished,
            failed_requests=self._failed, decisions=dict(machine.decisions), recomputes=dict(machine.recomputes),
            index_blocks=len(self._index), pending_writes=self._index.pending, any_read_ns=machine.any_read_ns,
        )  # fmt: skip
