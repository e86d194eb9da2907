"""Simulated agents: each turn follows its answer, and everything that they see is recorded."""

from array import array
from collections.abc import Callable, Sequence

from dualpath.core.ids import RequestId
from dualpath.sim.cluster import Cluster
from dualpath.sim.grant import Ask
from dualpath.sim.kernel import Kernel
from dualpath.workload.lengths import SessionLengths


class Records:
    """Figures of all answered turns, in order of their ends; seconds, -1 where not defined."""

    def __init__(self) -> None:
        self.agent = array("l")
        self.turn = array("l")
        self.prompt_tokens = array("l")
        self.cached_tokens = array("l")
        self.sent_s = array("d")
        self.ended_s = array("d")
        self.ttft_s = array("f")
        self.ttst_s = array("f")
        self.tpot_s = array("f")
        self.errors: list[str] = []

    def __len__(self) -> int:
        return len(self.agent)

    def add(self, ask: Ask, ended_ns: int, reply_ns: int, block_tokens: int) -> None:
        """A turn's last token reached its agent."""
        self.agent.append(ask.agent)
        self.turn.append(ask.turn)
        self.prompt_tokens.append(ask.prompt_tokens)
        self.cached_tokens.append(ask.hit_blocks * block_tokens)
        self.sent_s.append(ask.sent_ns / 1e9)
        self.ended_s.append(ended_ns / 1e9)
        self.ttft_s.append((ask.first_ns + reply_ns - ask.sent_ns) / 1e9)
        self.ttst_s.append((ask.second_ns - ask.first_ns) / 1e9 if ask.second_ns >= 0 else -1.0)
        later = ask.gen_tokens - 2
        self.tpot_s.append((ended_ns - reply_ns - ask.second_ns) / 1e9 / later if later > 0 else -1.0)


class Agents:
    """The closed loop of all sessions. `starts_ns`: when each begins; `think`: gaps between turns are waited for."""

    def __init__(
        self, kernel: Kernel, sessions: Sequence[SessionLengths], starts_ns: Sequence[int], *,
        block_tokens: int, think: bool, warm: bool, submit_ns: int, reply_ns: int, on_turn: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._kernel = kernel
        self._sessions = sessions
        self._starts_ns = starts_ns
        self._block_tokens = block_tokens
        self._think = think
        self._warm = warm
        self._submit_ns = submit_ns
        self._reply_ns = reply_ns
        self._on_turn = on_turn
        self.records = Records()
        self.cluster: Cluster

    def start(self, cluster: Cluster) -> None:
        """All agents ask their first turn at their time."""
        self.cluster = cluster
        for agent, start_ns in enumerate(self._starts_ns):
            self._kernel.at(start_ns, self._ask, agent, 0)

    def _ask(self, agent: int, turn: int) -> None:
        session = self._sessions[agent]
        prompt = int(session.prompt[turn])
        # The last token of a history was generated and has no KV
        reuse = prompt if turn == 0 and self._warm else int(session.reuse[turn]) - 1
        hit = max(0, min(reuse, prompt - 1)) // self._block_tokens  # at least one token is computed
        ask = Ask(RequestId(f"{agent}/{turn}"), agent, turn, prompt, int(session.gen[turn]), hit, self._kernel.now_ns)
        self._kernel.after(self._submit_ns, self.cluster.submit, ask)

    def finished(self, ask: Ask) -> None:
        """The cluster has the last token out."""
        self._kernel.after(self._reply_ns, self._answered, ask)

    def _answered(self, ask: Ask) -> None:
        self.records.add(ask, self._kernel.now_ns, self._reply_ns, self._block_tokens)
        self._on_turn(1)
        session, turn = self._sessions[ask.agent], ask.turn + 1
        if turn < len(session.prompt):
            gap_ns = int(session.gap_s[turn] * 1e9) if self._think else 0
            self._kernel.after(gap_ns, self._ask, ask.agent, turn)

    def failed(self, ask: Ask, message: str) -> None:
        """The request ends without an answer, and with it its agent."""
        self.records.errors.append(f"agent {ask.agent}, turn {ask.turn}: {message}")
