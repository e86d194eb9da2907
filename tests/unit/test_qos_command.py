"""The qos command: what it prints, its exit codes, wrong input."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dualpath.cli.main import app
from dualpath.core.errors import ConfigError


def qos(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["qos", *arguments])


def test_names_of_devices_reach_the_text() -> None:
    shown = qos("--fabric", "roce", "--device", "mlx5_7:ens3", "--kv-share", "0.05").stdout
    assert "cma_roce_tos -d mlx5_7" in shown and "mlnx_qos -i ens3" in shown and "KV 5%" in shown
    assert "dev ens9 root" in qos("--device", "ens9", "--rate", "1Gbit").stdout


def test_a_fabric_that_is_not_here_fails_the_check(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    done = qos("--check", "--fabric", "infiniband", "--device", "none0", "--json", str(out))
    assert done.exit_code == 1
    assert "cannot be checked here: no device none0" in done.stdout
    assert '"verdict": "unknown"' in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "fast"), "as a rate"),
        (("--rate", "none"), "a line has a rate"),
        (("--kv-share", "1"), "share"),
        (("--check", "--serve"), "two hosts"),
        (("--check", "--device", "none0"), "--device"),
        (("--check", "--device", "lo", "--peer", "127.0.0.1"), "--peer"),
        (("--serve", "--host", "192.0.2.1"), "cannot listen"),
    ],
)
def test_wrong_input_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        raise qos(*arguments).exception or AssertionError("it passed")
