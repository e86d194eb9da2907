"""`dualpath` as an operator meets it: wrong input ends in exit code 2 and its mend, `up` leaves nothing behind."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath.core.errors import ConfigError
from dualpath.core.model import load_spec
from dualpath.engine.model import PackedModel

TIMEOUT_S = 60
COMMAND = [sys.executable, "-m", "dualpath"]


def dualpath(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and plain words; they may come in a frame that breaks lines."""
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "ready" not in done.stdout
    for word in words:
        assert word in said


WRONG_FLAGS = [
    (("--read-policy", "foo"), ("--read-policy", "'prefill-only'", "'shorter-queue'", "'split'")),
    (("--prefill-policy", "foo"), ("--prefill-policy", "'least-tokens-short-queue'", "'round-robin'")),
    (("--topology", "1P"), ("write for example 1P1D",)),
    (("--snic", "20parsecs"), ("storage.snic: cannot read '20parsecs' as a rate", "write for example 20MB/s")),
    (("--cnic", "0"), ("storage.cnic: rate '0' must be positive",)),
    (("--arena", "1KiB"), ("holds no two blocks; give at least",)),
    (("--store", "memory:"), ("name a folder",)),
    (("--store", "ftp://host/kv"), ("no store of the kind ftp:", "give a folder")),
    (("--port", "70000"), ("network.port",)),
    (("--model", "nosuch"), ("take smollm2, tiny or a local Hugging Face folder",)),
    (("--model", "tiny:legs=4"), ("unknown field `legs`; fields are layers",)),
]


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS, ids=lambda value: " ".join(value)[:30])
def test_wrong_flags_are_refused(flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    store = () if "--store" in flags else ("--store", str(tmp_path / "store"))
    assert_refused(dualpath("up", "--model", "tiny", "--port", "0", *store, *flags), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[storage]\nsnicc = "1MB/s"', "unknown key storage.snicc; did you mean storage.snic?"),
        ("[cluster]\nengines_per_node = 0", "cluster.engines_per_node: expected int >= 1"),
        ('[scheduling]\nread_policy = "foo"', "write prefill-only or round-robin or shorter-queue or split"),
        ("[storage", "is not valid TOML"),
    ],
)
def test_wrong_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "dualpath.toml"
    file.write_text(text)
    assert_refused(dualpath("up", "--config", str(file)), words)


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def with_damaged_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"these are no weights")


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (without_weights, "no *.safetensors in"),
    "damaged weights": (with_damaged_weights, "transformers cannot load the model"),
    "no JSON": (lambda model: (model / "config.json").write_text("{"), "config.json is not valid JSON"),
    "nonsense": (with_config(num_attention_heads="many"), "config.json is no model's configuration"),
    "more layers": (with_config(num_hidden_layers=5), "lacks weights model.layers.4"),
    "dynamic rope": (with_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope type 'dynamic'"),
    "state space": (with_config(model_type="mamba", architectures=["MambaForCausalLM"]), "'linear_attention'"),
    "unknown type": (with_config(model_type="nosuchtype"), "model type `nosuchtype`"),
}


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    return copy


@pytest.mark.parametrize("kind", SPOILT)
def test_models_that_cannot_be_served_are_refused(model: Path, kind: str) -> None:
    spoil, words = SPOILT[kind]
    spoil(model)
    with pytest.raises(ConfigError) as refusal:
        PackedModel.load(load_spec(model, name="spoilt"))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_device_that_is_not_there_is_refused(tiny: Path) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"no device '{device}' here"):
            PackedModel.load(load_spec(tiny, name="tiny"), device)


@pytest.mark.parametrize("kind", ["nonsense", "unknown type"])
def test_the_words_of_a_role_that_refuses_reach_the_operator(model: Path, tmp_path: Path, kind: str) -> None:
    """The agents and the scheduler refuse the first, only the engines the second."""
    spoil, words = SPOILT[kind]
    spoil(model)
    done = dualpath("up", "--model", str(model), "--port", "0", "--store", str(tmp_path / "store"))
    assert_refused(done, words)


def test_stores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    arguments = ("up", "--model", "tiny", "--port", "0", "--store")
    assert_refused(dualpath(*arguments, str(file / "store")), "a file is where a folder should be: move it away")
    marker = tmp_path / "newer" / "store.json"
    marker.parent.mkdir()
    marker.write_text('{"format_version": 99}')
    assert_refused(dualpath(*arguments, str(marker.parent)), "written by a newer dualpath", "upgrade this one")


def test_a_store_without_permission_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o500)
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # who may do anything: give that up, and the folder to somebody else
        os.chown(store, 65534, 65534)
        store.chmod(0o555)
        prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all")
        if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], check=False).returncode:
            pytest.skip("root without setpriv may write everywhere")
    done = dualpath("up", "--model", "tiny", "--port", "0", "--store", str(store / "kv"), prefix=prefix)
    assert_refused(done, "permission denied: let this user read and write there, or choose another folder")


def test_a_full_store_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount, for a disk that is really full")
    try:
        done = dualpath("up", "--model", "tiny", "--port", "0", "--store", str(disk))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert_refused(done, "the disk is full: free some space")


def test_a_busy_port_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        start = time.monotonic()
        assert_refused(dualpath("up", "--model", "tiny", "--port", port), f"port {port}", "in use", "--port (0: any)")
        assert time.monotonic() - start < 10


# up, from its ready line to its end ------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """The temp folder of a cluster, short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="dp-") as path:
        yield Path(path)


def processes_of(folder: Path) -> list[int]:
    """All processes that were started with this temp folder, children of children too."""
    mark = f"TMPDIR={folder}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def shared_memory_of(pids: list[int]) -> set[str]:
    """Named shared memory that these processes map."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}


def listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def run_curl(line: str) -> httpx.Response:
    """What the ready line proposes, with our own client."""
    words = shlex.split(line)
    assert words[0] == "curl"
    name, _, value = words[words.index("-H") + 1].partition(": ")
    return httpx.post(words[1], content=words[words.index("-d") + 1], headers={name: value}, timeout=60)


def test_up_says_how_to_use_it_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    command = [*COMMAND, "up", "--model", "tiny", "--port", "0", "--store", store, "--arena", "16MiB"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        ready = process.stdout.readline()
        assert ready.startswith("ready after ")
        url, _, curl = ready.partition(": ")[2].partition("   try: ")
        answer = run_curl(curl)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        too_long = {"model": "tiny", "prompt": "x" * 28 * 64, "max_tokens": 1}  # 4 of 32 slots are for write-back
        refusal = httpx.post(f"{url}/completions", json=too_long, timeout=10)
        assert refusal.status_code == 400 and "at most 1792 tokens" in refusal.text, "longer than the arena"
        port = httpx.URL(url).port
        assert port
        assert_refused(dualpath("up", "--model", "tiny", "--port", str(port)), f"port {port}", "in use")
        assert httpx.get(f"{url}/models", timeout=10).status_code == 200, "the second one disturbed the first"
        pids = processes_of(folder)
        assert len(pids) == 7, "launcher, gateway, scheduler, two agents, two engines"
        memory = shared_memory_of(pids)
        assert list(folder.iterdir())
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in errors
    assert not processes_of(folder)
    left = [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]  # torch's, per user
    assert not left, "the run folder, a socket or a temporary file is left"
    assert not [name for name in memory if Path(name).exists()]
    assert not listening(port)
