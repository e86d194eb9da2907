"""Bytes between registered memories of nodes, in traffic classes (lanes): the compute network."""
