"""The incremental choices against the plain functions, after every change of a load, a limit or a queue."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.policy.decode import choose_decode
from dualpath.policy.decode_queue import DecodeQueue
from dualpath.policy.loads import EngineLoad, Limits, Pending
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.policy.prefill_index import PREFILL_INDEXES
from dualpath.policy.ranking import Ranking

small = st.integers(0, 6)
rows = st.lists(st.tuples(small, small, st.integers(0, 30)), max_size=3)  # requests, tokens, free memory of engines


def loads(node: str, read_queue: int, engines: list[tuple[int, int, int]]) -> list[EngineLoad]:
    return [EngineLoad(EngineId(f"{node}/{i}"), r, t, read_queue, free) for i, (r, t, free) in enumerate(engines)]


changes = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(0, 3), small, rows),
        st.tuples(st.just("remove"), st.integers(0, 3)),
        st.tuples(st.just("limits"), small, small),
    ),
    max_size=30,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(sorted(PREFILL_POLICIES)), changes)
def test_the_prefill_indexes_choose_as_the_policies(name: str, seen: list[tuple]) -> None:  # type: ignore[type-arg]
    index, plain = PREFILL_INDEXES[name](), PREFILL_POLICIES[name]
    nodes: dict[int, list[EngineLoad]] = {}
    limits = Limits(2, 4)
    for turn, (kind, *args) in enumerate(seen):
        if kind == "update":
            position, read_queue, engines = args
            nodes[position] = loads(f"p{position}", read_queue, engines)
            index.update(NodeId(f"p{position}"), position, read_queue, nodes[position])
        elif kind == "remove":
            nodes.pop(args[0], None)
            index.remove(NodeId(f"p{args[0]}"))
        else:
            limits = Limits(*args)
        everyone = [load for _, group in sorted(nodes.items()) for load in group]
        assert index.choose(limits, turn) == plain(everyone, limits, turn)


queue_changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20), st.integers(1, 12)),
        st.tuples(st.just("remove"), st.integers(0, 20)),
        st.tuples(st.just("loads"), rows),
        st.tuples(st.just("ask"), st.integers(0, 6)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(queue_changes)
def test_a_decode_queue_places_as_the_policy(seen: list[tuple]) -> None:  # type: ignore[type-arg]
    queue: DecodeQueue[str] = DecodeQueue()
    waiting: dict[int, int] = {}
    group: list[EngineLoad] = []
    for kind, *args in seen:
        if kind == "add" and args[0] not in waiting:
            waiting[args[0]] = args[1]
            queue.add(args[0], args[1], f"r{args[0]}")
        elif kind == "remove" and waiting.pop(args[0], None):
            queue.remove(args[0])
        elif kind == "loads":
            group = loads("d0", 0, args[0])
        queue.update(group)
        plain = choose_decode(group, [Pending(RequestId(f"r{s}"), t) for s, t in sorted(waiting.items())])
        if kind == "ask":  # any one first, then all
            assert (queue.placement(args[0]) is not None) == (args[0] < len(plain))
        placed = []
        while (one := queue.placement(len(placed))) is not None:
            placed.append((one.request, one.engine))
        assert placed == [(p.request, p.engine) for p in plain]
        assert (len(queue), queue.tokens) == (len(waiting), sum(waiting.values()))
        assert queue.requests() == [f"r{s}" for s in sorted(waiting)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), small)), max_size=200))
def test_the_first_of_a_ranking_is_the_smallest(seen: list[tuple[int, int | None]]) -> None:
    ranking: Ranking[str] = Ranking()
    ranks: dict[str, tuple[int, int]] = {}
    for item, rank in seen:
        if rank is None:
            ranks.pop(f"i{item}", None)
            ranking.discard(f"i{item}")
        else:
            ranks[f"i{item}"] = (rank, item)
            ranking.set(f"i{item}", (rank, item))
        assert ranking.first() == min(ranks, key=ranks.__getitem__, default=None)
        assert set(ranking) == set(ranks)
