"""Names of things. All ids are short printable strings, unique in one cluster."""

from typing import NewType

NodeId = NewType("NodeId", str)  # "p0", "d1": one machine (or one that plays one): an arena, NICs, an agent
EngineId = NewType("EngineId", str)  # "p0/0": one engine (one GPU) of a node
RequestId = NewType("RequestId", str)


def node_of(engine: EngineId) -> NodeId:
    """The node that an engine lives on: the part before the slash."""
    return NodeId(engine.split("/", 1)[0])
