"""vLLM as a prefill or decode engine: an out-of-tree KV connector, for kv_connector_module_path.

It only translates between vLLM's steps and the node agent's messages (docs/design/vllm.md).
"""

from typing import Any

from dualpath.vllm.version import check_version

__all__ = ["DualPathConnector"]


def __getattr__(name: str) -> Any:
    """The connector, which needs vLLM; the parts that plan and copy do not."""
    if name != "DualPathConnector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    from dualpath.vllm.connector import DualPathConnector

    return DualPathConnector
