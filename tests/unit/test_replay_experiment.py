"""What is compared: checked before anything starts, equal stores, sessions as asked."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from dualpath.bench.base_store import BaseStore, private_place
from dualpath.bench.experiment import Experiment, check, check_output, cluster_config
from dualpath.bench.sessions import load_sessions, longest_request, start_times
from dualpath.cli.main import app
from dualpath.core.config import Config
from dualpath.core.config_file import load_config
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.core.keys import KEY_BYTES
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.store.open import open_store
from dualpath.testing.fake_cluster import BYTES
from dualpath.workload import planned_prompts


def experiment(**fields: Any) -> Experiment:
    given = {"workload": "paper-64k", "policies": ("prefill-only", "split"), "agents": 2}
    return Experiment(**{**given, **fields})


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    BYTES.save(str(tmp_path / "tokenizer.json"))
    layout = BlockLayout("m", n_layers=2, block_tokens=64, token_bytes=8, dtype="float32")
    return ModelSpec("m", str(tmp_path), layout, 1, 1, 1, vocab_size=256, max_context_tokens=8192, eos_tokens=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper-16k"], "no workload 'paper-16k': neither a file nor one of paper-32k"),
        (["."], "no workload '.'"),
        (["paper-64k", "--read-policy", "split,fast"], "no read policy 'fast'; there are prefill-only"),
        (["paper-64k", "--read-policy", ""], "no read policy ''"),
        (["paper-64k", "--read-policy", "split,split"], "--pairs runs the list several times"),
        (["paper-64k", "--aps", "0"], "--aps 0"),
        (["paper-64k", "--snic", "fast"], "storage.snic: cannot read 'fast'"),
        (["paper-64k", "--json", "/proc/none/out.json"], "cannot write /proc/none/out.json"),
        (["paper-64k", "--json", "/"], "is a folder"),
        (["{folder}/words.txt", "--model", "tiny"], "is not JSON lines"),
    ],
)
def test_wrong_input_is_refused_before_a_cluster_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.txt").write_text("hello\n")
    monkeypatch.setattr("dualpath.bench.warm.LocalCluster", None)  # whoever starts one fails with TypeError
    monkeypatch.setattr("dualpath.launch.signals.end_like_ctrl_c", lambda: None)
    done = CliRunner().invoke(app, ["replay", *(text.format(folder=tmp_path) for text in arguments)])
    assert isinstance(done.exception, ConfigError), done.exception
    assert message in str(done.exception)


def test_flags_of_a_cluster_that_a_replay_chooses_itself_are_absent() -> None:
    text = CliRunner().invoke(app, ["replay", "--help"], terminal_width=200).output
    assert "--snic" in text and "--prefill-policy" in text and "--arena" in text
    assert not any(flag in text for flag in ("--port", "--store ", "--run-dir", "--api-key"))


def test_every_policy_gets_a_cluster_of_its_own() -> None:
    config = load_config(None, {
        "storage": {"snic": "20MB/s", "cnic": "50MB/s"}, "network": {"port": 80, "api_key": "k", "run_dir": "/x"},
    })  # fmt: skip
    mine = cluster_config(config, "shorter-queue")
    assert mine.scheduling.read_policy == "shorter-queue"
    assert (mine.snic_bytes_per_s, mine.cnic_bytes_per_s) == (20_000_000, 50_000_000)
    assert (mine.network.port, mine.network.api_key, mine.network.run_dir) == (0, "", "")
    free = cluster_config(config, "unthrottled")
    assert (free.scheduling.read_policy, free.snic_bytes_per_s, free.cnic_bytes_per_s) == ("split", None, None)


def test_a_store_goes_back_to_what_it_was(spec: ModelSpec, tmp_path: Path) -> None:
    block = memoryview(bytearray(spec.layout.block_bytes))
    config = private_place(Config(), tmp_path)
    base = BaseStore(config, spec.layout)

    async def change(*, written: list[bytes], deleted: list[bytes]) -> set[bytes]:
        store = open_store(config.storage.path, spec.layout)
        await store.open()
        for key in written:
            await store.write(key, block)
        for key in deleted:
            await store.delete(key)
        return {key async for key in store.keys()}  # noqa: SIM118

    first, second, third = (bytes([i]) * KEY_BYTES for i in range(3))
    asyncio.run(change(written=[first, second], deleted=[]))
    base.remember()
    asyncio.run(change(written=[third], deleted=[]))
    base.restore()
    assert asyncio.run(change(written=[], deleted=[second])) == {first}
    with pytest.raises(ServiceError, match="lost 1 blocks"):
        base.restore()
    base.remove()
    assert not Path(config.storage.path).exists()


def test_a_replay_takes_a_place_of_its_own_in_every_hosts_store(tmp_path: Path) -> None:
    config = load_config(None, {"storage": {"path": "s3://bucket/kv/"}, "hosts": {"p0": {"store": "/mnt/kv"}}})
    mine = private_place(config, tmp_path)
    name = mine.storage.path.removeprefix("s3://bucket/kv/")
    assert name.startswith("replay-")
    assert (mine.store_of("p0"), mine.store_of("d0")) == (f"/mnt/kv/{name}", mine.storage.path)
    assert private_place(config, tmp_path).storage.path != mine.storage.path


def test_the_output_folder_is_made(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "out.json")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_sessions_are_shortened_as_asked(spec: ModelSpec) -> None:
    whole = load_sessions(experiment(shrink=8), spec)
    assert [len(session.turns) for session in whole] != [4, 4]
    assert longest_request(whole) <= 8192
    few = load_sessions(experiment(shrink=8, turns=4), spec)
    assert [len(session.turns) for session in few] == [4, 4]
    assert [s.turns for s in few] == [s.turns[:4] for s in whole]
    bound = planned_prompts(few[0].turns)[2] + few[0].turns[2].gen_tokens
    cut = load_sessions(experiment(shrink=8, turns=4, max_context=bound, agents=1), spec)
    assert len(cut[0].turns) == 3
    assert longest_request(cut) == bound
    assert load_sessions(experiment(shrink=8, turns=4, seed=1), spec) != few


def test_sessions_that_cannot_begin_are_refused(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="needs more than 100 tokens; raise --max-context or --shrink"):
        load_sessions(experiment(shrink=8, max_context=100), spec)


def test_a_trace_of_text_uses_the_models_tokenizer(spec: ModelSpec, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file.write_bytes(b"\n".join(msgspec.json.encode({"id": i, "messages": messages}) for i in range(3)))
    sessions = load_sessions(experiment(workload=str(file)), spec)
    assert [session.turns[0].gen_tokens for session in sessions] == [5, 5]
    prompt = sessions[0].turns[0].append[0].ids().tolist()
    assert BYTES.decode(prompt) == "user: hi\nassistant: "
    with pytest.raises(ConfigError, match="has 3 sessions; lower --agents"):
        load_sessions(experiment(workload=str(file), agents=4), spec)


def test_starts() -> None:
    assert start_times(experiment(agents=3)) == [0.0, 0.0, 0.0]
    online = start_times(experiment(agents=3, aps=2.0))
    assert 0 < online[0] < online[1] < online[2]
    check(experiment(aps=2.0), Config())
