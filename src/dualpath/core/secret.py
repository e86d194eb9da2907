"""The cluster's shared secret, which every role reads from one file, and what is derived from it."""

import hashlib
import stat
from pathlib import Path

from dualpath.core.errors import ConfigError

LEAST_BYTES = 32
MOST_BYTES = 4096
MAKE_ONE = "make one with: (umask 077 && openssl rand -hex 32 > FILE)"


def cluster_key(file: str) -> bytes | None:
    """The secret in `file`, without white space around it; None for no file.

    ConfigError when it cannot be used, or when others than its owner may read or write it.
    """
    if not file:
        return None
    path = Path(file).expanduser()
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"network.key_file {file} is no file; {MAKE_ONE}")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"network.key_file {file} is open to others than its owner; run: chmod 600 {file}")
        with path.open("rb") as content:
            key = content.read(MOST_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"cannot read network.key_file {file}: {error.strerror}; {MAKE_ONE}") from None
    if not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise ConfigError(f"network.key_file {file} must hold {LEAST_BYTES} to {MOST_BYTES} bytes; {MAKE_ONE}")
    return key


def derive(key: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose only; knowing them tells nothing of the key or of those for other purposes."""
    return hashlib.blake2b(purpose.encode(), key=hashlib.blake2b(key).digest(), digest_size=32).digest()
