"""The folder of a cluster's sockets, logs and settings."""

import fcntl
import shutil
import tempfile
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.launch.lifeline import RUN_PREFIX


class RunDir:
    """A private folder that `close` removes, or the operator's own, of which `close` leaves the logs."""

    def __init__(self, named: str) -> None:
        """Make the folder; ConfigError when it cannot be made or another cluster runs in it."""
        self.private = not named
        try:
            self.path = Path(named).expanduser().absolute() if named else Path(tempfile.mkdtemp(prefix=RUN_PREFIX))
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("wb")
        except OSError as error:
            raise ConfigError(f"cannot use run folder {named or 'in the temp folder'}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"another cluster runs in {self.path}; choose another --run-dir") from None

    def close(self) -> None:
        """Remove what nobody needs after the cluster's end."""
        if self.private:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for path in [*self.path.glob("*.sock"), self.path / "config.json"]:  # which may hold a key
                path.unlink(missing_ok=True)
        self._lock.close()
