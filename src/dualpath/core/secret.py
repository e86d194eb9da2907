"""The cluster's shared secret, which every role reads from one file, and what is derived from it."""

import hashlib
from pathlib import Path

from dualpath.core.errors import ConfigError

LEAST_BYTES = 32


def cluster_key(file: str) -> bytes | None:
    """The secret in `file`, without spaces around it; None for no file. ConfigError when it cannot be used."""
    if not file:
        return None
    try:
        content = Path(file).expanduser().read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read network.key_file {file}: {error.strerror}") from None
    if len(content) < LEAST_BYTES:
        raise ConfigError(
            f"network.key_file {file} holds fewer than {LEAST_BYTES} bytes; make one with: openssl rand -hex 32"
        )
    return content


def derive(key: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose only; knowing them tells nothing of the key or of those for other purposes."""
    return hashlib.blake2b(purpose.encode(), key=hashlib.blake2b(key).digest(), digest_size=32).digest()
