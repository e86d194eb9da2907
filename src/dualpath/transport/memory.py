"""Memory that several processes map: an anonymous file (memfd) that lives as long as any process holds it.

It has no name in any file system, so nothing is left behind after kill -9.
"""

import fcntl
import mmap
import os

from dualpath.core.errors import ConfigError
from dualpath.core.units import format_bytes


class SharedMemory:
    """A mapped memfd. `view` is its bytes, `fd` is what other processes map (send it with transport.fds).

    The pages are taken when it is created, so that a lack of memory shows then and not in the middle of a
    transfer.
    """

    def __init__(self, fd: int) -> None:
        """Map a memfd received from elsewhere, and own it from here; ConfigError when it cannot be mapped."""
        try:
            self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise ConfigError(f"cannot map shared memory: {error}; free memory or give less to --arena") from None
        self.fd = fd
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, size_bytes: int, *, name: str = "dualpath") -> "SharedMemory":
        """New zeroed memory; `name` shows in /proc/<pid>/maps. ConfigError when the machine does not have
        it.
        """
        available = _available_bytes()
        if not 0 < size_bytes <= available:
            has = format_bytes(available)
            raise ConfigError(
                f"shared memory of {format_bytes(size_bytes)}: must be positive and fit the {has} available"
            )
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            # A mapped file that shrinks kills its users with SIGBUS; sealed, it cannot.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError as error:
            os.close(fd)
            size = format_bytes(size_bytes)
            raise ConfigError(f"cannot take {size} of shared memory: {error.strerror}; give less to --arena") from None
        return cls(fd)

    @property
    def size_bytes(self) -> int:
        """Size of the memory."""
        return len(self._map)

    def close(self) -> None:
        """Give up `view` and `fd`. Slices that others still hold keep the memory mapped until they are
        gone.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            self.view = memoryview(b"")

    def __enter__(self) -> "SharedMemory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _available_bytes() -> int:
    """Memory that the machine can give without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo has no MemAvailable: shared memory needs Linux 3.17 or later")
