import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dualpath.core.errors import ConfigError
from dualpath.workload import History, Session, planned_prompts, read_workload

VOCAB = 5000


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def write(folder: Path, *records: Any) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(folder: Path, *records: Any, **options: Any) -> list[Session]:
    return read_workload(write(folder, *records), vocab=VOCAB, **options)


def replay(session: Session, answers: list[str]) -> list[str]:
    history, prompts = History(session), []
    for answer in answers:
        prompts.append("".join(map(chr, history.prompt())))
        history.answered(letters(answer))
    return prompts


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def test_conversation_is_replayed_with_real_answers(tmp_path: Path) -> None:
    (session,) = read(tmp_path, {"id": "c", "messages": talk("hi", "yes", "so?", "no", "bye")}, tokenize=letters)
    assert [turn.gen_tokens for turn in session.turns] == [3, 2]
    assert replay(session, ["REAL", "X"]) == [
        "user: hi\nassistant: ",
        "user: hi\nassistant: REAL\nuser: so?\nassistant: ",
    ]


def test_tool_calls_are_part_of_the_answer(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    turns = [*talk("hi"), call, {"role": "tool", "content": "seen"}, {"role": "assistant", "content": "done"}]
    (session,) = read(tmp_path, {"task_id": 1, "trial": 2, "traj": turns}, tokenize=letters)
    assert session.id == "task-1/2"
    assert session.turns[0].gen_tokens == len('[{"name":"look"}]')
    assert replay(session, ["R", "R"])[1] == "user: hi\nassistant: R\ntool: seen\nassistant: "


def test_chat_template_closes_the_real_answer(tmp_path: Path) -> None:
    def render(messages: list[dict[str, Any]]) -> str:
        return "".join(f"<{m['role'][0]}>{m['content'].strip()}</>\n" for m in messages) + "<a>"

    (session,) = read(tmp_path, {"messages": talk("hi", " one ", "b", "two")}, tokenize=letters, render=render)
    assert replay(session, ["REAL", "R"]) == ["<u>hi</>\n<a>", "<u>hi</>\n<a>REAL</>\n<u>b</>\n<a>"]
    assert [turn.gen_tokens for turn in session.turns] == [3, 3]


def test_chat_template_that_drops_old_answers(tmp_path: Path) -> None:
    def render(messages: list[dict[str, Any]]) -> str:
        shown = [m for i, m in enumerate(messages) if m["role"] == "user" or i >= len(messages) - 1]
        return "".join(f"<{m['content']}>" for m in shown) + "|"

    (session,) = read(tmp_path, {"messages": talk("a", "one", "b", "two")}, tokenize=letters, render=render)
    assert replay(session, ["R", "R"]) == ["<a>|", "<a><b>|"]
    assert session.turns[1].keep_tokens == len("<a>")


def test_requests_of_one_session_shrink_restart_and_interleave(tmp_path: Path) -> None:
    requests = [
        talk("a", "one"),
        talk("x", "two"),
        talk("a", "one", "b", "three"),
        talk("x", "two", "y", "four"),
        talk("new", "five"),
    ]
    lines = [{"session_id": 7, "messages": messages, "timestamp": 2.0 * i} for i, messages in enumerate(requests)]
    (session,) = read(tmp_path, *lines, tokenize=letters)
    prompts = replay(session, ["R1", "R2", "R3", "R4", "R5"])
    assert prompts[2] == "user: a\nassistant: R1\nuser: b\nassistant: "
    assert prompts[3] == "user: x\nassistant: R2\nuser: y\nassistant: "
    assert prompts[4] == "user: new\nassistant: "
    assert [turn.base for turn in session.turns] == [None, None, 0, 1, None]
    assert session.turns[1].gap_s == 2.0


def test_flattened_prompts_without_the_answers(tmp_path: Path) -> None:
    lines = [{"session_id": "s", "input": text, "output": "zz", "timestamp": 1} for text in ("abc", "abcdef", "abX")]
    (session,) = read(tmp_path, *lines, tokenize=letters)
    assert [(t.keep_tokens, t.append_tokens) for t in session.turns] == [(None, 3), (3, 3), (2, 1)]
    assert replay(session, ["R", "R", "R"]) == ["abc", "abcdef", "abX"]


def test_lengths_shrink_and_take_the_template_into_the_append(tmp_path: Path) -> None:
    rows = [[100, 10, 100, None], [20, 5, 134, 3], [30, 5, 60, 1]]
    (session,) = read(tmp_path, {"id": "n", "turns": rows})
    assert [(t.keep_tokens, t.append_tokens, t.gap_s) for t in session.turns] == [
        (None, 100, 0),
        (None, 24, 3),
        (30, 30, 1),
    ]
    assert planned_prompts(session.turns) == [100, 134, 60]


def test_weka_blocks_and_sub_agents(tmp_path: Path) -> None:
    main = [
        {"t": 0, "type": "n", "in": 130, "out": 5, "api_time": 1.0, "keep": 0, "new": [[1, 2]]},
        {"t": 9, "type": "subagent", "agent_id": "x", "duration_ms": 6000, "requests": [
            {"t": 0, "type": "s", "in": 64, "out": 0, "keep": 0, "new": [[1, 1]]}]},
        {"t": 12, "type": "n", "in": 192, "out": 5, "think_time": 11.0, "keep": 1, "new": [[7, 2]]},
    ]  # fmt: skip
    one, helper, other = read(tmp_path, {"id": "w", "requests": main}, {"id": "w", "requests": main[:1]})
    assert (one.id, helper.id, helper.start_s, other.id) == ("w", "w/x", 3.0, "w#2")
    first, second = replay(one, ["ignored", ""])
    assert len(first) == 130 and len(second) == 192
    assert first[:64] == second[:64] == replay(helper, [""])[0] and first[64:128] != second[64:128]
    assert replay(other, [""])[0][:64] != first[:64]  # ids are local
    assert [turn.gap_s for turn in one.turns] == [0.0, 11.0]


def test_mooncake_ids_are_global_and_join_sessions(tmp_path: Path) -> None:
    rows = [(1100, [0, 1, 2]), (1100, [0, 5, 6]), (1700, [0, 1, 8, 9]), (600, [0, 10])]
    lines = [
        {"timestamp": 500 * i, "input_length": n, "output_length": 4, "hash_ids": ids}
        for i, (n, ids) in enumerate(rows)
    ]
    sessions = read(tmp_path, *lines)
    assert [len(session.turns) for session in sessions] == [2, 1, 1]
    assert [session.start_s for session in sessions] == [0.0, 0.5, 1.5]
    first, later = replay(sessions[0], ["", ""])
    assert (
        (len(first), len(later)) == (1100, 1700) and first[:1024] == later[:1024] and first[1024:] != later[1024:1100]
    )
    assert [len(s.turns) for s in read(tmp_path, *lines, limit_sessions=1)] == [2]


def test_gzip_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "turns": [[5, 1, 5, null]]}\n\n' * 3))
    assert [s.id for s in read_workload(path, vocab=VOCAB, limit_sessions=2)] == ["a", "a#2"]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_workload(path, vocab=VOCAB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name,age\n", "is not JSON lines"),
        ('{"prompt": "x"}\n', "no workload in a known format.*prompt"),
        ("[1]\n", "no JSON object"),
        ('{"id": "a", "turns": [[5, 1, 5]]}\n\n{"id": "b"}\n', "line 3: .*turns"),
        ('{"id": "a", "turns": [[5, 1, 5]]}\n{"id": "a", "tur', "line 2: "),
        ('{"id": "a", "turns": [[0, 1, 0]]}\n', "line 1: .*empty prompt"),
        ('{"id": "a", "turns": [[5, -1, 5]]}\n', "line 1: "),
        (
            '{"id": "a", "requests": [{"t": 0, "type": "n", "in": 64, "out": 1, "keep": 3}]}\n',
            "line 1: .*keeps 3",
        ),
        ('{"messages": []}\n', "need a tokenizer"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_workload(path, vocab=VOCAB)


def test_missing_file_and_roles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_workload(tmp_path / "none", vocab=VOCAB)
    with pytest.raises(ConfigError, match='line 1: message 0 has no "role"'):
        read(tmp_path, {"messages": [{"content": "x"}]}, tokenize=letters)
