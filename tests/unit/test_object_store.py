"""ObjectStore in trouble: dead, slow and restarted services, lost connections, wrong names, secrets kept."""

import asyncio
import http.server
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import juicefs
from dualpath.core.config_file import load_config
from dualpath.core.errors import BlockCorrupt, BlockMissing, ConfigError, StoreUnavailable
from dualpath.store import download, objecterrors
from dualpath.store.format import BlockFormat
from dualpath.store.object import ObjectStore
from dualpath.store.open import open_store
from dualpath.testing.store import LAYOUT, list_keys, make_block, make_keys, read_block, write_all

SECRET = "wJalr-very-secret-XUtnFEMI"
(KEY,) = make_keys(1)
OBJECT = BlockFormat(LAYOUT).header(KEY, make_block(KEY)) + bytes(make_block(KEY))


class Service(http.server.ThreadingHTTPServer):
    """Answers each GET by the next word of `script`: a status, cut (within the body), stall, or the whole object."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.ranges: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        word = self.server.script.pop(0) if self.server.script else "whole"
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if word.isdigit():
            self._head(int(word), 0)
            return
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        body = OBJECT[start:]
        self._head(206 if asked else 200, len(body), f"bytes {start}-{len(OBJECT) - 1}/{len(OBJECT)}")
        self.wfile.write(body if word == "whole" else body[:1000])
        self.close_connection = word != "whole"
        if word == "stall":
            time.sleep(1)

    def _head(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 20:37:29 GMT")
        if status == 206:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        return


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        set_environment(monkeypatch, running.server_port)
        yield running
        running.shutdown()
        thread.join(10)


def set_environment(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-token")


def read(deadline_s: float = 3.0) -> bytes:
    return asyncio.run(read_block(ObjectStore.from_url("s3://bucket/kv", LAYOUT, deadline_s=deadline_s), KEY))


@pytest.mark.parametrize("script", [[], ["503", "429"], ["500"], ["cut"], ["cut", "503", "cut"], ["stall"]])
def test_reads_outlive_short_trouble(service: Service, script: list[str]) -> None:
    service.script = list(script)
    assert read(deadline_s=1.5 if "stall" in script else 6) == make_block(KEY)
    assert len(service.ranges) == len(script) + 1


def test_a_lost_connection_costs_only_what_had_not_come(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 256)
    service.script = ["cut"]
    assert read() == make_block(KEY)
    whole, rest = service.ranges
    assert whole is None and rest is not None and 256 <= int(rest.removeprefix("bytes=").split("-")[0]) <= 1000


def test_endless_trouble_is_told_in_time(service: Service) -> None:
    for word, mend in (("503", "overloaded"), ("cut", "connection was lost"), ("400", "look into its log")):
        service.script = [word] * 1000
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=mend):
            read(deadline_s=1.0)
        assert time.monotonic() - started_s < 1.5


def test_absent_is_not_unavailable(service: Service) -> None:
    service.script = ["404"]
    with pytest.raises(BlockMissing):
        read()


@pytest.mark.parametrize("status", ["401", "403"])
def test_refused_credentials_are_the_operators(service: Service, status: str) -> None:
    service.script = [status]
    store = open_store("s3://bucket/kv", LAYOUT)
    with pytest.raises(ConfigError, match=r"refuses the credentials: check AWS_ACCESS_KEY_ID"):
        asyncio.run(store.open())


def test_a_dead_service_is_told_in_time_and_cancelling_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, juicefs.free_port())

    async def test() -> None:
        store = ObjectStore.from_url("s3://bucket/kv", LAYOUT, deadline_s=1.5)
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"cannot use s3://bucket/kv as a store: it takes no connections"):
            await store.open()
        assert time.monotonic() - started_s < 2
        reading = asyncio.ensure_future(read_block(store, KEY))
        await asyncio.sleep(0.1)
        reading.cancel()
        await asyncio.sleep(0.01)
        assert not reading.done()
        with pytest.raises(asyncio.CancelledError):
            await reading
        for work in (store.contains(KEY), store.write(KEY, make_block(KEY)), store.delete(KEY), list_keys(store)):
            with pytest.raises(StoreUnavailable, match="takes no connections"):
                await work
        await store.close()

    asyncio.run(test())


def test_no_word_of_a_secret_gets_out(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    for word in ("403", "503", "400", "cut", "307"):
        service.script = [word] * 100
        store = ObjectStore.from_url("s3://bucket/kv", LAYOUT, deadline_s=0.5)
        told.append(f"{store!r} {vars(store)}")
        for work in (store.open, lambda store=store: read_block(store, KEY)):
            try:
                asyncio.run(work())
            except (ConfigError, StoreUnavailable) as error:
                assert error.__suppress_context__
                told += traceback.format_exception(error)
    for url in (f"s3://key:{SECRET}@bucket/x", f"s3://bucket/x?secret={SECRET}"):
        with pytest.raises(ConfigError, match="come from the environment") as caught:
            open_store(url, LAYOUT)
        told.append(str(caught.value))
        with pytest.raises(ConfigError, match="come from the environment") as caught:
            load_config(overrides={"storage": {"path": url}})
        told.append(str(caught.value))
    assert len(told) > 8 and SECRET not in "".join(told) + caplog.text


def test_the_librarys_own_words_are_never_passed_on() -> None:
    words = f"Generic S3 error: GET http://u:{SECRET}@h/?X-Amz-Credential={SECRET} status code: 418 {SECRET}"
    assert objecterrors.explain(OSError(words)) == "the service failed: look into its log (answer: 418)"


def test_plain_http_needs_the_operators_word(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ConfigError, match="set AWS_ALLOW_HTTP=true"):
        asyncio.run(open_store("s3://bucket/kv", LAYOUT).open())


@pytest.mark.parametrize("url", ["s3:", "s3://", "s3:///x", "gs:/x", "az:"])
def test_urls_without_a_bucket(url: str) -> None:
    with pytest.raises(ConfigError, match="bucket"):
        open_store(url, LAYOUT)


class TestGatewayTrouble:
    @pytest.fixture
    def gateway(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[juicefs.Gateway]:
        with juicefs.gateway(tmp_path / "s3") as running:
            for name, value in running.environment.items():
                monkeypatch.setenv(name, value)
            yield running

    def test_killed_and_restarted_under_reads(self, gateway: juicefs.Gateway) -> None:
        async def test() -> None:
            store = ObjectStore.from_url(f"s3://{juicefs.VOLUME}/kv", LAYOUT, deadline_s=2)
            await store.open()
            keys = make_keys(8)
            await write_all(store, keys)

            async def read_on(key: bytes) -> str:
                while True:
                    try:
                        assert await read_block(store, key) == make_block(key)
                    except StoreUnavailable as error:
                        return str(error)

            readers = [asyncio.ensure_future(read_on(key)) for key in keys]
            await asyncio.sleep(0.3)
            gateway.kill()
            for told in await asyncio.wait_for(asyncio.gather(*readers), 6):
                assert "connection" in told
            await asyncio.to_thread(gateway.start)
            for key in keys:
                assert await read_block(store, key) == make_block(key)
            assert await list_keys(store) == sorted(keys)

        asyncio.run(test())

    def test_wrong_names_are_the_operators(self, gateway: juicefs.Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="no such bucket: make it"):
            asyncio.run(open_store("s3://nowhere/kv", LAYOUT).open())
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with pytest.raises(ConfigError, match=r"refuses the credentials.*403 SignatureDoesNotMatch") as caught:
            asyncio.run(open_store(f"s3://{juicefs.VOLUME}/kv", LAYOUT).open())
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_damaged_header_is_corrupt(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OBJECT", b"?" + OBJECT[1:])
    with pytest.raises(BlockCorrupt, match="not a dualpath block"):
        read()
