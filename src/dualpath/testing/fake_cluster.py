"""A cluster without engines, for tests: every prompt gets the same answer, one token a byte."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.core.request import Done, FinishReason, Submission, Timeline, Tokens

TIMELINE = Timeline(
    dispatched_ns=10, prefill_side_loaded_ns=30, prefill_started_ns=40, prefill_finished_ns=100,
    decode_started_ns=120, finished_ns=200, prefill_engine="p0/0", decode_engine="d0/0",
    read_bytes_prefill=64,
)  # fmt: skip
CACHED_TOKENS = 8
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One token a byte, 256 in all: token ids are easy to name in tests."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


BYTES = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    """The tokens of a text."""
    return BYTES.encode(text).ids


class FakeCluster:
    """A SchedulerClient. Fails with `error` before token `fail_at`; keeps what was asked and cancelled."""

    spec = ModelSpec(
        name="fake", path="", n_heads=1, kv_heads=1, head_dim=1, vocab_size=256, max_context_tokens=1000,
        layout=BlockLayout(model="fake", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32"),
        eos_tokens=(),
    )  # fmt: skip
    max_request_tokens = 900

    def __init__(self, answer: str = "Hello, wörld", *, error: Exception | None = None, fail_at: int = 0) -> None:
        self.answer, self.error, self.fail_at = answer, error, fail_at
        self.submissions: list[Submission] = []
        self.cancelled: list[str] = []
        self.submitted = asyncio.Event()
        self.hang = False  # after the tokens, instead of Done
        self.state: ClusterReport | Exception = ClusterReport(ready=True)

    @property
    def urls(self) -> list[str]:
        """None: it sends tokens itself."""
        return []

    async def submit(self, submission: Submission) -> AsyncIterator[Tokens | Done]:
        """The answer's tokens, one by one, up to max_tokens."""
        self.submissions.append(submission)
        self.submitted.set()
        ended = False
        try:
            ids = ids_of(self.answer)[: submission.max_tokens]
            for index, token in enumerate(ids):
                if self.error and index == self.fail_at:
                    raise self.error
                yield Tokens(request=submission.request, index=index, ids=[token], gaps=[0.5])
                await asyncio.sleep(0)
            if self.hang:
                await asyncio.sleep(60)
            ended = True
            reason = FinishReason.LENGTH if len(ids) == submission.max_tokens else FinishReason.STOP
            yield Done(submission.request, reason, len(ids), CACHED_TOKENS, TIMELINE)
        finally:
            if not ended:
                self.cancelled.append(submission.request)

    async def report(self) -> ClusterReport:
        """`state`, or raises it."""
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


def ask(app: Any, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
    """One request to an ASGI app, without a socket; a body that is not bytes is sent as JSON."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            content = body if isinstance(body, bytes | None) else json.dumps(body)
            return await http.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def error_of(response: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object of an answer, after a check of its shape."""
    body = response.json()
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return body["error"]
