"""Kinds of networks between the nodes."""

import enum


class Fabric(enum.StrEnum):
    """What carries the compute network; each has its own way to keep lanes apart."""

    INFINIBAND = "infiniband"
    ROCE = "roce"
    ETHERNET = "ethernet"
