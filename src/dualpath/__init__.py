"""Dualpath: serve LLM agents from a prefill/decode cluster whose KV-cache lies on external storage.

Each cached block is read from storage exactly once, by the node that the read plan names; the other side gets it
over the compute network. docs/structure.md tells a request's way through these folders.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dualpath")
except PackageNotFoundError:  # a source tree on sys.path without an installation
    __version__ = "0+unknown"

__all__ = ["__version__"]
