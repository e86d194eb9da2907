"""Message lists (OpenAI's shape) become exchanges: one for each message of the assistant."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from dualpath.workload.text import Exchange

Message = dict[str, Any]
Render = Callable[[list[Message]], str]  # the whole prompt, ending where the assistant's answer begins

_PROBE = "\N{OBJECT REPLACEMENT CHARACTER}"


def render_plain(messages: list[Message]) -> str:
    """The rendering without a chat template: a line "role: content" for each message, then "assistant: "."""
    lines = [f"{message['role']}: {_content(message)}\n" for message in messages]
    return "".join(lines) + "assistant: "


def message_exchanges(messages: list[Message], render: Render) -> Iterator[Exchange]:
    """The requests that led to the assistant's messages in one conversation; the rest after the last one is
    not sent.
    """
    answered_at: float | None = None
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:
            continue
        created = message.get("created")
        gap_s = max(0.0, created - answered_at) if created is not None and answered_at is not None else 0.0
        answered_at = created
        yield answer_exchange(messages[:index], message, render, gap_s=gap_s)


def answer_exchange(before: list[Message], answer: Message, render: Render, *, gap_s: float = 0.0) -> Exchange:
    """The request of `before`, answered by the message `answer`."""
    prompt = render(before)
    output = _output_text(prompt, before, answer, render)
    return Exchange(prompt, output, gap_s=gap_s, gen_tokens=_recorded_tokens(answer))


def _output_text(prompt: str, before: list[Message], answer: Message, render: Render) -> str:
    """The answer as the template writes it into later prompts, tool calls included, without what closes it.

    What closes an answer is seen by rendering a known one in its place. A template that rewrites what came
    before (drops old reasoning, say) gives the content alone.
    """
    known = render([*before, {"role": "assistant", "content": _PROBE}])
    whole = render([*before, answer])
    closing = known[known.rfind(_PROBE) + len(_PROBE) :]
    if whole.startswith(prompt) and whole.endswith(closing) and len(whole) >= len(prompt) + len(closing):
        return whole[len(prompt) : len(whole) - len(closing)]
    return _content(answer)


def _content(message: Message) -> str:
    """Content and tool calls as text; of content in parts, the text parts."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    calls = message.get("tool_calls")
    return content + (msgspec.json.encode(calls).decode() if calls else "")


def _recorded_tokens(message: Message) -> int:
    """Completion tokens of a recorded `usage`: a dict as in OpenAI's API, or [prompt, completion, ...]."""
    usage = message.get("usage")
    if isinstance(usage, dict):
        return int(usage.get("completion_tokens", 0))
    return int(usage[1]) if usage else 0
