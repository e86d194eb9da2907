"""`dualpath doctor --cluster`: what it proves of a cluster that works, and what it says of one that does not."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dualpath.cli.main import app
from dualpath.core.errors import ServiceError
from dualpath.doctor.probe import PROMPT_TOKENS, probe
from e2e.live_cluster import cluster


def test_a_probe_shows_both_paths(tiny: Path, tmp_path: Path) -> None:
    with cluster(tiny, tmp_path / "store") as running:
        found = probe(running.url)
        assert found.cached_tokens == PROMPT_TOKENS // 64 * 64
        assert sum(each.read + each.retained for each in found.carried) > 0
        done = CliRunner().invoke(app, ["doctor", "--cluster", running.url])
        assert done.exit_code == 0, done.output
        assert "it works" in done.output


def test_no_gateway_is_said_so() -> None:
    with pytest.raises(ServiceError, match="no gateway answers"):
        probe("http://127.0.0.1:9")
