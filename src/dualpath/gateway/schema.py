"""Request bodies of the two OpenAI endpoints: typed, bounded, and strict about what it cannot honour.

A field is known (a struct field), inert (accepted, cannot change the output), unsupported (accepted only when
it holds a value that asks for nothing) or unknown (refused, so that a typo is never silently ignored). null
means absent.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from dualpath.core.errors import RequestError

INERT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "request_id",
    "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "priority",
})  # fmt: skip
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
    "min_p": (0,), "min_tokens": (0,), "stop_token_ids": ([],), "use_beam_search": (False,),
    "length_penalty": (1,), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,), "prompt_logprobs": (), "truncate_prompt_tokens": (),
    "return_tokens_as_token_ids": (False,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "verbosity": (), "moderation": (), "web_search_options": (), "top_logprobs": (0,),
    "chat_template": (), "chat_template_kwargs": ({},), "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}  # fmt: skip

MAX_STOPS = 16
MAX_STOP_CHARS = 256

Tokens = Annotated[int, Meta(ge=1, le=2**31)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Shape = TypeVar("Shape", bound="GenerationRequest")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a streamed answer; obfuscation is padding that this server never adds."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share. Extensions to OpenAI's: top_k, ignore_eos, return_token_ids, cache_salt."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] = 0  # 0 and -1 = all
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    cache_salt: Annotated[str, Meta(max_length=1024)] = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/completions."""

    prompt: str | list[Any]

    def text_or_tokens(self) -> str | list[int]:
        """The one prompt: text, or token ids. RequestError when it is empty, several, or of mixed types."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise RequestError("only one prompt a request is supported; send one request each", param="prompt")
            prompt = prompt[0]
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        try:
            return prompt if isinstance(prompt, str) else msgspec.convert(prompt, list[int])
        except msgspec.ValidationError:
            raise RequestError("prompt must be a string or a list of token ids", param="prompt") from None


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """One part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a chat. Parts are joined by newlines; the role developer is rendered as system."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = None

    def as_template_input(self) -> dict[str, str]:
        """What the chat template sees."""
        parts = [part.text for part in self.content] if isinstance(self.content, list) else [self.content or ""]
        named = {"name": self.name} if self.name else {}
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(parts),
            **named,
        }


class ChatRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None

    def __post_init__(self) -> None:
        """Both names of the one limit may be given only when they agree."""
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ValueError("`max_tokens` and `max_completion_tokens` differ; give one of them")
        self.max_tokens = self.max_completion_tokens or self.max_tokens


def parse(body: bytes, shape: type[Shape]) -> Shape:
    """Decode a body as `shape`. RequestError names the parameter that is wrong."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not a JSON object: {error}", code="invalid_json") from None
    asked = {name: value for name, value in fields.items() if value is not None and name not in INERT}
    _drop_neutral(asked, logprobs=(False,) if shape is ChatRequest else ())
    try:
        request = msgspec.convert(asked, shape)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=_param(str(error))) from None
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    return request


def _drop_neutral(fields: dict[str, Any], *, logprobs: tuple[Any, ...]) -> None:
    for name, neutral in {**UNSUPPORTED, "logprobs": logprobs}.items():
        value = fields.pop(name, None)
        if value is not None and value not in neutral:
            words = f"; leave it out or send {neutral[0]!r}" if neutral else "; leave it out"
            raise RequestError(f"parameter {name!r} is not supported{words}", param=name, code="unsupported_parameter")


def _param(message: str) -> str | None:
    """The top-level parameter that a validation message names."""
    match = re.search(r"`\$\.(\w+)", message) or re.search(r"field `(\w+)`", message)
    return match[1] if match else None
