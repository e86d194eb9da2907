"""The spare reader is the node that a look at all others would find, in whatever the cluster goes through."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.core.report import Role
from dualpath.protocol.ledger import SlotLedger
from dualpath.protocol.membership import Membership, Node
from dualpath.protocol.spare import SpareReaders

NAMES = [NodeId(name) for name in ("p0", "p1", "d0", "d1", "d2")]
steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "queue", "rate", "ask", "ask"]),
        st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from([0, 1, 2, 6]),
    ),
    max_size=60,
)  # fmt: skip


def plain(members: Membership, pair: set[NodeId]) -> Node | None:
    """Of all that are not of the pair; ties: who joined first."""

    def end(node: Node) -> tuple[float, int]:
        return node.read_queue_tokens / (node.read_tokens_per_s or 1.0), node.position

    return min((n for name, n in members.nodes.items() if name not in pair), key=end, default=None)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_the_spare_is_the_first_of_all_others(steps: list[tuple[str, NodeId, NodeId, int]]) -> None:
    members = Membership(10**9)
    spares = SpareReaders(members)
    for name in NAMES[:3]:
        members.join(name, Role.PREFILL, SlotLedger(4, 1), 1.0, 0)
    for kind, name, other, value in steps:
        if kind == "join":
            members.leave(name)
            members.join(name, Role.DECODE, SlotLedger(4, 1), float(value), 0)
        elif name not in members.nodes:
            continue
        elif kind == "leave":
            members.leave(name)
        elif kind == "queue":
            members.nodes[name].queue_reads(value)
        elif kind == "rate":
            members.report_reads(members.nodes[name], float(value))
        elif other in members.nodes:
            assert spares.besides(members.nodes[name], members.nodes[other]) is plain(members, {name, other})
