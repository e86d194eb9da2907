"""One plain server and one cluster for all tests of this folder that do not break what they use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dualpath.engine.checkpoints import default_cache_dir, resolve_model
from dualpath.launch.local import LocalCluster
from vllm_tests.servers import ABSENT, PYTHON, cluster, plain_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not PYTHON and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=ABSENT))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real model."""
    return resolve_model("smollm2", cache_dir=default_cache_dir())


@pytest.fixture(scope="session")
def plain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a vLLM server without the connector."""
    with plain_server(smollm2, tmp_path_factory.mktemp("plain") / "server.log") as url:
        yield url


@pytest.fixture(scope="session")
def running(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """1P1D without vLLM's own prefix cache, so that every hit comes through the connector; prompts in chunks."""
    store = tmp_path_factory.mktemp("store")
    arguments = "--no-enable-prefix-caching --max-num-batched-tokens 256"
    with cluster(smollm2, store, arguments, storage={"snic": "200MB/s"}) as made:
        yield made
