"""The cluster's secret: which files are taken, and that what is derived from it tells nothing of it."""

import os
from pathlib import Path

import pytest

from dualpath.core.address import is_address, is_loopback, tcp_endpoint, tcp_host
from dualpath.core.errors import ConfigError
from dualpath.core.secret import MOST_BYTES, cluster_key, derive

KEY = b"k" * 32


def key_file(folder: Path, content: bytes = KEY, mode: int = 0o600) -> str:
    file = folder / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return str(file)


def test_the_key_is_the_files_content_without_white_space(tmp_path: Path) -> None:
    assert cluster_key(key_file(tmp_path, b" " + KEY + b"\n")) == KEY
    assert cluster_key(key_file(tmp_path, mode=0o400)) == KEY
    assert cluster_key("") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {file}"):
        cluster_key(file)


@pytest.mark.parametrize("content", [b"", b"k" * 31, b"k" * 31 + b"\n" * 9, b"k" * (MOST_BYTES + 1)])
def test_a_key_of_wrong_length_is_refused_with_a_way_to_make_one(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"32 to 4096 bytes; make one with: .*openssl rand") as caught:
        cluster_key(key_file(tmp_path, content))
    assert "kkk" not in str(caught.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, words in ((tmp_path, "is no file"), (tmp_path / "pipe", "is no file"), (tmp_path / "no", "No such file")):
        with pytest.raises(ConfigError, match=words):
            cluster_key(str(path))


def test_derived_keys_differ_by_purpose_and_key_and_repeat() -> None:
    derived = [derive(KEY, "a"), derive(KEY, "b"), derive(b"x" * 32, "a"), derive(b"x" * 4096, "a")]
    assert len({KEY, *derived}) == 5
    assert {len(part) for part in derived} == {32}
    assert derive(KEY, "a") == derived[0]


def test_addresses() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("10.0.0.1", "0.0.0.0", "node7", "", "localhost.evil")] == [False] * 5
    assert [is_address(h) for h in ("10.0.0.1", "fd00::1", "0.0.0.0", "::", "*", "node7")] == [True] * 2 + [False] * 4


@pytest.mark.parametrize(("host", "port"), [("10.0.0.1", 7000), ("::1", 1), ("localhost", 65535), ("fd00::1", "*")])
def test_an_endpoints_host_comes_back(host: str, port: int | str) -> None:
    assert tcp_host(tcp_endpoint(host, port)) == host


@pytest.mark.parametrize(
    "text", ["", "ipc:///x", "tcp://", "tcp://a", "tcp://a:0", "tcp://a:65536", "tcp://:5", "tcp://::1:5", "tcp://a:b"]
)
def test_other_texts_are_no_tcp_endpoints(text: str) -> None:
    assert tcp_host(text) is None
