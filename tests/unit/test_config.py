"""One file, every value a flag, and messages that name the key and the mend."""

import stat
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from dualpath.cli.options import config_flags, with_config
from dualpath.core.config import Config, Scheduling, parse_topology
from dualpath.core.config_file import check_config, load_config, save_config, sections
from dualpath.core.errors import ConfigError
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.policy.read import READ_POLICIES

EXAMPLE = Path(__file__).parents[2] / "examples" / "dualpath.toml"
SECTIONS = [field.name for field in sections()]


def write(folder: Path, text: str) -> Path:
    file = folder / "some.toml"
    file.write_text(text)
    return file


def test_defaults_are_valid() -> None:
    assert load_config() == Config()


def test_the_example_holds_every_value_at_its_default() -> None:
    text = EXAMPLE.read_text().replace("# max_context = 8192", "max_context = 8192")
    assert "max_context = 8192" in text
    assert load_config(EXAMPLE) == Config()
    for section in SECTIONS:
        body = text.split(f"[{section}]\n")[1].split("\n[")[0]
        for name in getattr(Config(), section).__struct_fields__:
            assert f"\n{name} = " in "\n" + body, f"{section}.{name} is missing in {EXAMPLE.name}"


def test_file_then_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, '[cluster]\ntopology = "2P4D"\nengines_per_node = 2\n[storage]\nsnic = "20MB/s"\n')
    config = load_config(file, {"cluster": {"engines_per_node": 3}})
    assert (config.cluster.topology, config.cluster.engines_per_node) == ("2P4D", 3)
    assert (config.snic_bytes_per_s, config.cnic_bytes_per_s) == (20_000_000, 160_000_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[cluster]\ntopolgy = '1P1D'",
            r"some\.toml: unknown key cluster\.topolgy; did you mean cluster\.topology\?",
        ),
        ("[storag]\n", r"unknown key storag; did you mean storage\?"),
        ("cluster = 3", r"cluster is a section; write \[cluster\]"),
        ("[cluster]\nengines_per_node = '2'", r"cluster\.engines_per_node: expected int, got str"),
        ("[cluster]\nengines_per_node = 0", r"cluster\.engines_per_node: expected int >= 1"),
        ("[model]\nmax_context = 0", r"model\.max_context: expected int >= 1"),
        ("[storage]\ntransport = 'rdma'", r"storage\.transport: .*'rdma'; write auto or shm or tcp or nixl"),
        (
            "[storage]\nsnic = 'fast'",
            r"storage\.snic: cannot read 'fast' as a rate; write for example 20MB/s",
        ),
        ("[storage]\narena = '0'", r"storage\.arena must be positive"),
        ("[storage]\npath = 'memory:'", r"storage\.path memory: .* name a folder"),
        ("[scheduling]\nread_policy = 'fast'", r"scheduling\.read_policy: .*'fast'; write prefill-only or .* split"),
        ("[scheduling]\nprefill_policy = 'fast'", r"write least-tokens-short-queue or round-robin"),
        ("[network]\nscheduler = 'tcp://127.0.0.1:99999'", r"network\.scheduler .* write ipc:///path or tcp://ADDRESS"),
        ("[network]\nscheduler = 'tcp://0.0.0.0:7000'", r"network\.scheduler .* with an IP address"),
        ("[network]\nscheduler = 'tcp://node7:7000'", r"network\.scheduler .* with an IP address"),
        ("[network]\nscheduler = 'tcp://127.0.0.1:*'", r"network\.scheduler .* is no endpoint"),
        ("[hosts.p1]", r"hosts\.p1 is no node of 1P1D, nor control"),
        ("[hosts.p0]\naddress = '0.0.0.0'", r"hosts\.p0\.address .* write 10\.0\.0\.7"),
        ("[hosts.p0]\naddress = 'node7'", r"hosts\.p0\.address .* write 10\.0\.0\.7"),
        ("[storage]\nwrite_share = 1.5", r"storage\.write_share: expected float <= 0\.9"),
        ("[cluster]\ntopology = '0P1D'", "write for example 1P1D"),
        ("[network]\nhost = '0.0.0.0'", r"set network\.api_key, or use 127\.0\.0\.1"),
        ("[network]\nscheduler = 'tcp://10.0.0.1:5'", r"set network\.key_file, or use tcp://127\.0\.0\.1:PORT"),
        ("[limits]\nlease_s = 0.6", r"limits\.lease_s must be at least twice limits\.heartbeat_s"),
        ("[cluster", "not valid TOML"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_all_policies_can_be_chosen() -> None:
    """The choices stand in core/config.py, which may not import the policies."""
    hints = get_type_hints(Scheduling)
    assert set(get_args(hints["read_policy"])) == set(READ_POLICIES)
    assert set(get_args(hints["prefill_policy"])) == set(PREFILL_POLICIES)


def test_missing_file_and_long_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="shorter path"):
        load_config(None, {"network": {"run_dir": "/tmp/" + 80 * "x"}})


@pytest.mark.parametrize("endpoint", ["ipc:///run/s.sock", "tcp://127.0.0.1:7000", "tcp://[::1]:7000"])
def test_local_endpoints_are_taken(endpoint: str) -> None:
    assert load_config(None, {"network": {"scheduler": endpoint}}).scheduler_endpoint == endpoint


THREE_HOSTS = {
    "network": {"scheduler": "tcp://10.0.0.1:7000", "key_file": "/etc/dualpath.key"},
    "hosts": {"control": {"address": "10.0.0.1"}, "p0": {"address": "10.0.0.2"}, "d0": {"address": "fd00::3"}},
}


def test_a_cluster_of_several_hosts_is_taken() -> None:
    assert load_config(None, THREE_HOSTS).host_of("d0").address == "fd00::3"


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("network", {"key_file": ""}, r"set network\.key_file"),
        ("network", {"scheduler": ""}, r"hosts\.control is .* set network\.scheduler to tcp://ADDRESS:PORT"),
        ("network", {"scheduler": "tcp://127.0.0.1:7000"}, r"set network\.scheduler to tcp://ADDRESS:PORT"),
        ("storage", {"transport": "shm"}, r"storage\.transport shm .* set auto, tcp or nixl"),
        ("hosts", {"p0": {}}, r"cannot reach p0 on loopback: set hosts\.p0\.address"),
        ("hosts", {"control": {}}, r"cannot reach control on loopback: set hosts\.control\.address"),
        ("cluster", {"topology": "1P2D"}, r"cannot reach d1 on loopback: set hosts\.d1\.address"),
    ],
)
def test_what_several_hosts_lack_is_named(section: str, change: dict[str, Any], message: str) -> None:
    values = {**THREE_HOSTS, section: {**THREE_HOSTS.get(section, {}), **change}}
    with pytest.raises(ConfigError, match=message):
        load_config(None, values)


@pytest.mark.parametrize(("text", "counts"), [("1P1D", (1, 1)), ("2p4d", (2, 4)), (" 48P96D ", (48, 96))])
def test_topologies(text: str, counts: tuple[int, int]) -> None:
    assert parse_topology(text) == counts


@pytest.mark.parametrize("text", ["", "1P", "1P0D", "1D1P", "-1P1D", "1P1D1", "one", "01P1D"])
def test_wrong_topologies(text: str) -> None:
    with pytest.raises(ConfigError, match="2P4D"):
        parse_topology(text)


def test_names_of_nodes_and_engines() -> None:
    config = load_config(None, {"cluster": {"topology": "1P2D", "engines_per_node": 2}})
    assert config.nodes == ["p0", "d0", "d1"]
    assert config.engines == ["p0/0", "p0/1", "d0/0", "d0/1", "d1/0", "d1/1"]


def test_saved_config_is_private_and_equal(tmp_path: Path) -> None:
    config = load_config(None, {"network": {"api_key": "s3cret", "run_dir": "/tmp/x"}, "model": {"max_context": 7}})
    file = tmp_path / "config.json"
    save_config(config, file)
    assert load_config(file) == config
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_old_file_that_others_may_read_does_not_expose_the_key(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.touch(mode=0o644)
    save_config(Config(), file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_key_is_never_printed() -> None:
    config = load_config(None, {"network": {"api_key": "s3cret"}})
    assert "s3cret" not in f"{config} {config!r} {config.network} {config.network.__rich_repr__()}"
    assert "***" in repr(config)


def test_every_value_has_one_flag_and_help() -> None:
    flags = list(config_flags())
    values = [(s, name) for s in SECTIONS for name in getattr(Config(), s).__struct_fields__]
    assert [(flag.section, flag.name) for flag in flags] == values
    assert len({flag.text for flag in flags}) == len(flags)
    for flag in flags:
        annotation: Any = flag.parameter.annotation
        assert annotation.__metadata__[0].help.endswith("."), flag.text


def other_value(default: object) -> object:
    """A valid value that differs from the default."""
    match default:
        case None:
            return 4096
        case int() | float():
            return default * 2 if default else 1
        case "auto" | "info" | "keep" | "software" | "split" | "least-tokens-short-queue" | "reference":
            others = {"auto": "tcp", "info": "debug", "keep": "drop", "software": "network", "split": "shorter-queue"}
            return {**others, "reference": "vllm"}.get(str(default), "round-robin")
        case _:
            return "2P2D" if default == "1P1D" else "ipc:///x" if default == "" else "64MB"


def given_to_command(*arguments: str) -> Config:
    seen: list[Config] = []
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @with_config
    def command(config: Config) -> None:
        seen.append(config)

    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize("flag", list(config_flags()), ids=lambda flag: flag.text)
def test_every_flag_reaches_its_value(flag: Any) -> None:
    value = other_value(getattr(getattr(Config(), flag.section), flag.name))
    if flag.text == "--host":
        value = "::1"
    extra = ["--cnic", "1MB/s", "--lease-s", "99"] if flag.text not in ("--cnic", "--lease-s") else []
    config = given_to_command(flag.text, "64MB" if flag.text == "--cnic" else str(value), *extra)
    assert str(getattr(getattr(config, flag.section), flag.name)) == ("64MB" if flag.text == "--cnic" else str(value))
    check_config(config)


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[network]\nport = 1234\nhost = 'localhost'\n")
    config = given_to_command("--config", str(file), "--port", "0")
    assert (config.network.port, config.network.host) == (0, "localhost")
