"""Outcomes on disk, so that an interrupted reproduction goes on where it was."""

import hashlib
import os
from pathlib import Path

import msgspec

import dualpath
from dualpath.bench.reproduce.outcome import Outcome
from dualpath.bench.results import write_json
from dualpath.core.errors import ConfigError
from dualpath.sim.scenario import Scenario

_FOLDERS = ("core", "policy", "protocol", "sim", "workload")
_FILES = ("bench/simulate.py", "bench/results.py", "bench/reproduce/work.py", "bench/reproduce/outcome.py")


def source_hash() -> str:
    """Of all source and data that decide an outcome."""
    root = Path(dualpath.__file__).parent
    files = [root / name for name in _FILES]
    files += [file for folder in _FOLDERS for suffix in ("py", "toml") for file in (root / folder).rglob(f"*.{suffix}")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def default_folder() -> Path:
    """Where outcomes are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualpath" / "reproduce"


class _Kept(msgspec.Struct):
    scenario: Scenario
    outcome: Outcome


class Cache:
    """A folder with a file for each scenario and version of the source. ConfigError when it cannot be written."""

    def __init__(self, folder: Path, version: str) -> None:
        self._folder = folder
        self.version = version
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the cache folder {folder}: {error.strerror}; name another") from None
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"cannot write in the cache folder {folder}; name another")

    def get(self, scenario: Scenario) -> Outcome | None:
        """The outcome, or None: not there, or not readable as one."""
        try:
            kept = msgspec.json.decode(self._file(scenario).read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return None
        return kept.outcome if kept.scenario == scenario else None

    def put(self, scenario: Scenario, outcome: Outcome) -> None:
        """Keep it, whole or not at all."""
        write_json(self._file(scenario), _Kept(scenario, outcome))

    def _file(self, scenario: Scenario) -> Path:
        key = self.version.encode() + msgspec.json.encode(scenario, order="deterministic")
        return self._folder / f"{hashlib.sha256(key).hexdigest()}.json"
