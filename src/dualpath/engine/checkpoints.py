"""From a model's name to a Hugging Face folder on this machine; made once, then kept in the cache."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from dualpath.core.errors import ConfigError
from dualpath.engine.smollm2 import find_gguf, write_smollm2
from dualpath.engine.tiny import TinyShape, parse_shape, write_tiny

FORMAT = "v2"  # raise it when a converter writes something else under the same name
LOCK_DEADLINE_S = 600.0
LOCK_POLL_S = 0.1

Writer = Callable[[Path, Callable[[float], None]], None]


def default_cache_dir() -> Path:
    """$DUALPATH_CACHE, or ~/.cache/dualpath."""
    return Path(os.environ.get("DUALPATH_CACHE") or Path.home() / ".cache" / "dualpath")


def resolve_model(name: str, *, cache_dir: Path, progress: bool = False) -> Path:
    """Folder of "smollm2", "tiny", "tiny:layers=2,seed=1,..." or a local path; ConfigError names the mend.

    Several processes may ask at once: one converts, the others wait. `progress` shows a bar on stderr.
    """
    if name == "smollm2":
        source = find_gguf()
        folder = cache_dir / f"smollm2-{source.stat().st_size}-{FORMAT}"
        return _make_once(folder, lambda into, advance: write_smollm2(source, into, advance), progress)
    if name == "tiny" or name.startswith("tiny:"):
        shape = parse_shape(name)
        return _make_once(cache_dir / _tiny_name(shape), lambda into, _: write_tiny(shape, into), progress)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--model {name} has no config.json; take smollm2, tiny or a local Hugging Face folder")
    return folder.resolve()


def _tiny_name(shape: TinyShape) -> str:
    return "-".join(["tiny", *(f"{field}{value}" for field, value in msgspec.structs.asdict(shape).items()), FORMAT])


def _make_once(folder: Path, write: Writer, progress: bool) -> Path:
    """Write under another name and rename, one process at a time: a folder that exists is complete."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                _make(folder, write, progress)
    except OSError as error:
        raise ConfigError(f"cannot write the model cache {folder.parent}: {error}; set DUALPATH_CACHE") from error
    return folder


def _make(folder: Path, write: Writer, progress: bool) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed: the lock is ours
    partial.mkdir()
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task(f"making model {folder.name.split('-', 1)[0]}", total=1.0)
        write(partial, lambda share: bar.update(task, completed=share))
    partial.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock; the kernel frees it when its process dies."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise ConfigError(f"another process holds {path} for {LOCK_DEADLINE_S:.0f} s; end it and try again")
            time.sleep(LOCK_POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
