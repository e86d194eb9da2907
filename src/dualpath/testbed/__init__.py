"""Hosts, NICs and networks of a cluster on one machine: network namespaces shaped by the kernel."""
