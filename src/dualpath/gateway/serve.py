"""From a request to a Submission, and from the cluster's events to text."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import cast

import msgspec

from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.ids import RequestId
from dualpath.core.keys import chain_keys, pack_tokens, root_key
from dualpath.core.request import Done, Sampling, Submission, Tokens
from dualpath.gateway.desk import ClusterDesk, Limits
from dualpath.gateway.schema import ChatRequest, CompletionRequest
from dualpath.gateway.timing import Stopwatch
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.scheduler.client import SchedulerClient

COMPLETION_TOKENS = 16  # OpenAI's default
CHAT_TOKENS = 512  # ours: memory is reserved for all tokens that may come, so not the rest of the context


class Part(msgspec.Struct, frozen=True):
    """Generated tokens and the text that they made certain; text may lag behind."""

    text: str
    ids: list[int]
    gaps: list[float]


class End(msgspec.Struct, frozen=True):
    """The rest of the text and the last word of the cluster; `reason` also knows stop strings cut here."""

    text: str
    reason: str
    done: Done


class Service(ClusterDesk):
    """Requests for engines that take tokens from us: one tokenizer."""

    def __init__(self, client: SchedulerClient, tokenizer: Tokenizer, limits: Limits) -> None:
        super().__init__(client, limits)
        self._tokenizer = tokenizer
        self._encoder = ThreadPoolExecutor(1, "tokenizer")  # one thread: long prompts leave the event loop free

    async def prepare(self, request: CompletionRequest | ChatRequest, request_id: str) -> tuple[Submission, list[int]]:
        """Tokens, limits and keys of a request; RequestError when it can never be served."""
        if request.model != self.spec.name:
            words = f"the model {request.model!r} does not exist; this server has {self.spec.name!r}"
            raise RequestError(words, param="model", code="model_not_found", status=404)
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._prepare, request, request_id)

    def _prepare(self, request: CompletionRequest | ChatRequest, request_id: str) -> tuple[Submission, list[int]]:
        tokens = self._tokens(request)
        packed = pack_tokens(tokens)
        layout = self.spec.layout
        root = root_key(layout, salt=request.cache_salt.encode())
        submission = Submission(
            request=RequestId(request_id),
            tokens=packed,
            root=root,
            keys=tuple(chain_keys(root, packed, layout.block_tokens)),
            max_tokens=self._max_tokens(request, len(tokens)),
            sampling=sampling_of(request),
        )
        return submission, tokens

    def _tokens(self, request: CompletionRequest | ChatRequest) -> list[int]:
        if isinstance(request, ChatRequest):
            return self._tokenizer.encode_chat([message.as_template_input() for message in request.messages])
        prompt = request.text_or_tokens()
        if isinstance(prompt, str):
            return self._tokenizer.encode_text(prompt)
        if min(prompt) < 0 or max(prompt) >= self.spec.vocab_size:
            words = f"token ids must be from 0 to {self.spec.vocab_size - 1}"
            raise RequestError(words, param="prompt", code="invalid_token_id")
        return prompt

    def _max_tokens(self, request: CompletionRequest | ChatRequest, prompt_tokens: int) -> int:
        limit = self.max_tokens_per_request
        default = CHAT_TOKENS if isinstance(request, ChatRequest) else COMPLETION_TOKENS
        wanted = request.max_tokens or max(1, min(default, limit - prompt_tokens))
        if prompt_tokens + wanted > limit:
            words = (
                f"this server takes at most {limit} tokens a request; yours has {prompt_tokens} in the "
                f"prompt and asks for {wanted} more; shorten the prompt or lower max_tokens"
            )
            param = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise RequestError(words, param=param, code="context_length_exceeded")
        return wanted

    async def generate(self, submission: Submission, arrived_ns: int) -> AsyncGenerator[Part | End, None]:
        """Serve a submission: Parts, then one End. Closing it early cancels the request in the cluster.

        Latencies count from `arrived_ns` on the monotonic clock.
        """
        text = self._tokenizer.answer(submission.sampling.stop)
        watch = Stopwatch(arrived_ns)
        async with aclosing(cast(AsyncGenerator[Tokens | Done, None], self._client.submit(submission))) as events:
            while isinstance(event := await self._next(events), Tokens):
                watch.saw(len(event.ids), time.monotonic_ns())
                yield Part(text.push(event.ids), event.ids, event.gaps)
            rest = text.finish()
            reason = "stop" if text.stopped else str(event.reason)
            e2e_ns = time.monotonic_ns() - arrived_ns
            self.latencies.observe(watch, e2e_ns)
            self.history.add(event, submission.prompt_tokens, watch, reason, e2e_ns)
            yield End(rest, reason, event)

    async def _next(self, events: AsyncIterator[Tokens | Done]) -> Tokens | Done:
        try:
            async with asyncio.timeout(self.limits.event_timeout_s):
                return await anext(events)
        except TimeoutError:
            raise ServiceError(f"the cluster was silent for {self.limits.event_timeout_s:g} s; try again") from None
        except StopAsyncIteration:
            raise ServiceError("the cluster ended the request without a result; try again") from None


def sampling_of(request: CompletionRequest | ChatRequest) -> Sampling:
    """How to choose tokens; without a seed every request gets a random one."""
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        seed=secrets.randbits(63) if request.seed is None else request.seed % 2**63,
        stop=request.stops,
        ignore_eos=request.ignore_eos,
    )
