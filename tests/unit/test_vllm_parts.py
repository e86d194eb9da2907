"""Parts of the vLLM connector that need no vLLM: block sizes, layouts, pages, keys of what fills placeholders."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core import wire
from dualpath.core.config_file import load_config
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.keys import chain_keys, fill_placeholders, pack_tokens
from dualpath.core.layout import BlockLayout
from dualpath.core.request import Sampling
from dualpath.vllm import version
from dualpath.vllm.job import Grid, grant_of, sequences_of, shifted
from dualpath.vllm.layout import check_supported, model_spec, stored_block_tokens
from dualpath.vllm.main import arguments
from dualpath.vllm.planner import Planner
from dualpath.vllm.shard import KvShard
from dualpath.vllm.step import Pairs, Session, ShardShape, StepDone


@pytest.mark.parametrize(("vllm", "wanted", "stored"), [(16, None, 64), (64, None, 64), (128, None, 128), (16, 48, 48)])
def test_a_stored_block_is_a_whole_number_of_vllms(vllm: int, wanted: int | None, stored: int) -> None:
    assert stored_block_tokens(vllm, wanted) == stored


@pytest.mark.parametrize("wanted", [0, -64, 100])
def test_other_sizes_are_refused_with_the_mend(wanted: int) -> None:
    with pytest.raises(ConfigError, match="--block-size"):
        stored_block_tokens(16, wanted)


def server(**changes: Any) -> Any:
    values = {"pipeline": 1, "data": 1, "speculative": None, "policy": "recompute", **changes}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=values["pipeline"], data_parallel_size=values["data"]),
        speculative_config=values["speculative"],
        kv_transfer_config=SimpleNamespace(kv_load_failure_policy=values["policy"]),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        model_config=SimpleNamespace(
            model="org/name", served_model_name=["name", "alias"], dtype=torch.bfloat16, quantization=None,
            hf_overrides={}, max_model_len=4096, get_vocab_size=lambda: 1000,
        ),
    )  # fmt: skip


def caches(groups: int = 1, block: int = 16) -> Any:
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=block))
    return SimpleNamespace(kv_cache_groups=[group] * groups, num_blocks=10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": 2}, "--pipeline-parallel-size 1"),
        ({"data": 2}, "--data-parallel-size 1"),
        ({"speculative": SimpleNamespace(method="eagle")}, "ngram"),
        ({"policy": "fail"}, "recompute"),
    ],
)
def test_what_cannot_be_kept_right_is_refused_at_start(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_supported(server(**changes), caches())
    check_supported(server(), caches())


def test_several_kinds_of_kv_cache_are_refused() -> None:
    with pytest.raises(ConfigError, match="--disable-hybrid-kv-cache-manager"):
        check_supported(server(), caches(groups=2))


def test_the_layout_names_all_that_shapes_a_block() -> None:
    shard = ShardShape(layers=4, page_bytes=16 * 20, memory="cpu float32 2x16x5/80x5x1")
    extra = {"model_version": "v1"}
    spec = model_spec(server(), caches(), {0: shard, 1: shard}, extra)
    assert spec.layout.layer_block_bytes == 2 * 4 * 320, "two ranks, four of vLLM's blocks in a stored one"
    assert (spec.name, spec.layout.block_tokens, spec.layout.dtype) == ("name", 64, "bfloat16")
    others = [
        model_spec(server(), caches(), {0: shard, 1: shard}, {"model_version": "v2"}),
        model_spec(server(), caches(), {0: shard}, extra),
        model_spec(server(), caches(block=32), {0: ShardShape(4, 640, shard.memory)}, extra),
        model_spec(server(), caches(), {r: ShardShape(4, 320, "cuda") for r in (0, 1)}, extra),
    ]
    assert len({each.layout.fingerprint() for each in [spec, *others]}) == 5
    with pytest.raises(ConfigError, match="differ"):
        model_spec(server(), caches(), {0: shard, 1: ShardShape(4, 640, "cpu")}, extra)
    with pytest.raises(ConfigError, match="model_version"):
        model_spec(server(), caches(), {0: shard}, {})


def filled(cache: torch.Tensor) -> torch.Tensor:
    cache.view(-1).copy_(torch.arange(cache.numel(), dtype=cache.dtype))
    return cache


BLOCKS = 6
MEMORIES = {
    "blocks first": lambda: filled(torch.zeros(BLOCKS, 2, 4, 6)),
    "K and V apart": lambda: filled(torch.zeros(2, BLOCKS, 4, 3)),
    "heads before tokens": lambda: filled(torch.zeros(BLOCKS, 2, 4, 6)).permute(0, 2, 1, 3),
    "kernel blocks": lambda: filled(torch.zeros(BLOCKS * 2, 2, 6)),
    "bytes": lambda: torch.arange(BLOCKS * 48, dtype=torch.uint8).view(BLOCKS, 48),
}


@pytest.mark.parametrize("memory", MEMORIES)
def test_pages_go_out_and_come_back_whole(memory: str) -> None:
    source = {f"layers.{i}": MEMORIES[memory]() for i in range(2)}
    shard = KvShard(source, BLOCKS)
    outside = torch.zeros(3, 2, shard.shape.page_bytes, dtype=torch.uint8)
    pairs = Pairs([0, 2, 1], [1, 0, 1], [5, 0, 3])
    shard.save(1, outside, pairs)
    target = {name: torch.zeros_like(cache) for name, cache in source.items()}
    KvShard(target, BLOCKS).load(1, outside, Pairs(pairs.outside, pairs.part, [1, 2, 4]))
    axis = 1 if memory == "K and V apart" else 0
    size = source["layers.1"].shape[axis] // BLOCKS
    for old, new in zip([5, 0, 3], [1, 2, 4], strict=True):
        for k in range(size):
            a, b = (t.select(axis, i * size + k) for t, i in ((source["layers.1"], old), (target["layers.1"], new)))
            assert torch.equal(a, b)
    assert not target["layers.0"].any()
    assert not target["layers.1"].select(axis, 0).any()


def test_memories_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ConfigError, match="no block dimension"):
        KvShard({"layers.0": torch.zeros(7, 5)}, BLOCKS)
    with pytest.raises(ConfigError, match="contiguous"):
        KvShard({"layers.0": torch.zeros(BLOCKS, 8)[:, ::2]}, BLOCKS)
    with pytest.raises(ConfigError, match="different sizes"):
        KvShard({"layers.0": torch.zeros(BLOCKS, 8), "layers.1": torch.zeros(BLOCKS, 4)}, BLOCKS)


def test_layers_that_share_a_cache_count_once() -> None:
    cache = torch.zeros(BLOCKS, 8)
    shard = KvShard({"layers.0": cache, "layers.1": torch.zeros(BLOCKS, 8), "layers.2": cache}, BLOCKS)
    assert shard.layer_of == {"layers.0": 0, "layers.1": 1}


@given(st.integers(1, 4), st.integers(1, 8), st.data())
def test_the_grid_pairs_every_page_of_a_range_once(parts: int, size: int, data: st.DataObject) -> None:
    grid = Grid(parts * size, size)
    start = data.draw(st.integers(0, 20))
    stop = data.draw(st.integers(start, 60))
    offset = data.draw(st.integers(-2, 5))
    pairs, blocks = Pairs(), [100 + i for i in range(60)]
    grid.pairs(start, stop, blocks, shifted(offset), pairs)
    covered = {token for token in range(60) if 100 + token // size in pairs.blocks}
    assert set(range(start, stop)) <= covered
    assert len(pairs.blocks) == len(set(pairs.blocks)) == len({token // size for token in range(start, stop)})
    for place, part, block in zip(pairs.outside, pairs.part, pairs.blocks, strict=True):
        assert (place - offset) * parts + part == block - 100


def test_what_fills_a_placeholder_decides_keys_from_there_on() -> None:
    tokens = [1] * 4 + [9] * 8 + [2] * 4

    def keys(fillings: list[tuple[int, int, str]]) -> list[bytes]:
        return chain_keys(b"root" * 4, pack_tokens(fill_placeholders(tokens, fillings)), 4)

    plain, cat, dog = keys([]), keys([(4, 8, "cat")]), keys([(4, 8, "dog")])
    assert plain[0] == cat[0] == dog[0]
    assert all(len({a, b, c}) == 3 for a, b, c in zip(plain[1:], cat[1:], dog[1:], strict=True))
    assert keys([(4, 8, "cat")]) == cat, "the same in every process"
    assert keys([(4, 4, "cat"), (8, 4, "cat")])[2] != cat[2], "where in the picture a token lies counts"


def test_parameters_of_strangers_mean_no_grant() -> None:
    for params in (None, {}, {"dualpath": 3}, {"dualpath": {"grant": "1"}}, {"do_remote_decode": True}):
        request = SimpleNamespace(kv_transfer_params=params)
        assert grant_of(request) is None
        if not isinstance((params or {}).get("dualpath"), int):
            assert sequences_of(request) == 1
    assert grant_of(SimpleNamespace(kv_transfer_params={"dualpath": {"grant": 7}})) == 7


def test_ranks_answers_add_up() -> None:
    assert StepDone({1, 2}, 5).aggregate(StepDone({2}, 9)) == StepDone({2}, 9)


@pytest.mark.parametrize(("installed", "words"), [(None, "not installed"), ("0.31.2", "0.32"), ("1.32.0", "0.32")])
def test_other_versions_of_vllm_are_refused(monkeypatch: pytest.MonkeyPatch, installed: str | None, words: str) -> None:
    monkeypatch.setattr(version, "installed_version", lambda: installed)
    with pytest.raises(ConfigError, match=words):
        version.check_version()
    monkeypatch.setattr(version, "installed_version", lambda: "0.32.5+cpu")
    version.check_version()


def test_the_operators_arguments_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    config = load_config(None, {
        "engine": {"kind": "vllm", "arguments": "--dtype float32 --port 9"},
        "network": {"run_dir": "/run/x", "api_key": "secret"},
        "model": {"path": "/models/m", "version": "v7"},
    })  # fmt: skip
    line = arguments(config, EngineId("d0/0"), "127.0.0.1", 8100)
    assert line[-4:] == ["--dtype", "float32", "--port", "9"]
    assert "secret" not in " ".join(line)
    assert '"agent": "/run/x/agent-d0.sock"' in " ".join(line)
    assert '"model_version": "v7"' in " ".join(line)


def planner(sent: list[wire.Message]) -> Planner:
    layout = BlockLayout(model="m", n_layers=2, block_tokens=8, token_bytes=4, dtype="float32", memory="x")
    made = Planner(Grid(8, 4), layout, 64, "http://here", sent.append, lambda reply_to, ready: None)
    made.attached(Session(1, EngineId("p0/0")))
    return made


@pytest.mark.parametrize("completed", [True, False])
def test_a_prefill_that_was_cut_short_is_said_so(completed: bool) -> None:
    sent: list[wire.Message] = []
    made, tokens = planner(sent), list(range(20))
    start = wire.StartPrefill(7, EngineId("p0/0"), RequestId("r"), pack_tokens(tokens), 8, 1, Sampling(), "ipc:///x")
    made.receive(start)
    request = SimpleNamespace(
        request_id="a", kv_transfer_params={"dualpath": {"grant": 7}}, all_token_ids=tokens, num_prompt_tokens=20,
        num_computed_tokens=8,
    )  # fmt: skip
    assert made.matched(request, 0) == (8, False)
    made.allocated(request, [1, 2, 3, 4, 5], 8)
    state = SimpleNamespace(resolve_block_ids=lambda name: ([1, 2, 3, 4, 5],))
    if completed:
        plan = made.plan_step(SimpleNamespace(num_scheduled_tokens={"a": 12}, kv_connector_block_state=state))
        assert plan.stream is not None
        assert plan.stream.fill.blocks == [1, 2]
        assert plan.stream.push.blocks == [3, 4, 5]
    made.finished(request, [1, 2, 3, 4, 5], completed=completed, capped=False)
    last = sent[-1]
    assert last == (wire.PrefillFinished(7, 0, 0) if completed else wire.StepFailed(7, "prefill aborted"))
