"""Bodies of answers in OpenAI's shapes, whole and as stream chunks.

Token ids stand where vLLM puts them: `token_ids` in each choice (of a chunk: its own tokens),
`prompt_token_ids` in a completion's choice but at the top of a chat answer; `logit_gaps` beside `token_ids`
is ours.
"""

from typing import Any

from dualpath.core.request import Done


class Reply:
    """Shapes of one completion's answer."""

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_name = "text_completion"
    prompt_ids_in_choice = True

    def __init__(
        self, request_id: str, model: str, created: int, *, prompt_ids: list[int] | None, usage: bool = False
    ) -> None:
        """`prompt_ids`: None unless the client wants token ids; `usage`: chunks carry a usage field."""
        self._head = {"id": request_id, "created": created, "model": model}
        self._prompt_ids = prompt_ids
        self._null_usage = {"usage": None} if usage else {}

    def whole(self, text: str, reason: str, ids: list[int], gaps: list[float], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer of a request without streaming."""
        choice = {**self._whole_choice(text), **self._choice(reason), **self._token_fields(ids, gaps)}
        return {**self._head, "object": self.object_name, **self._prompt_fields(choice), "usage": usage}

    def opening(self) -> dict[str, Any] | None:
        """The chunk before any text: here only when the prompt's token ids were asked for."""
        return None if self._prompt_ids is None else self._first(self.chunk("", [], []))

    def chunk(self, text: str, ids: list[int], gaps: list[float], reason: str | None = None) -> dict[str, Any]:
        """One part of the answer; the last one has a reason."""
        choice = {**self._chunk_choice(text), **self._choice(reason), **self._token_fields(ids, gaps)}
        return {**self._head, "object": self.chunk_name, "choices": [choice], **self._null_usage}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk, when stream_options.include_usage asks for it."""
        return {**self._head, "object": self.chunk_name, "choices": [], "usage": usage}

    def _first(self, chunk: dict[str, Any]) -> dict[str, Any]:
        return {**chunk, **self._prompt_fields(chunk["choices"][0])}

    def _prompt_fields(self, choice: dict[str, Any]) -> dict[str, Any]:
        if self._prompt_ids is None:
            return {"choices": [choice]}
        if self.prompt_ids_in_choice:
            return {"choices": [{**choice, "prompt_token_ids": self._prompt_ids}]}
        return {"choices": [choice], "prompt_token_ids": self._prompt_ids}

    def _token_fields(self, ids: list[int], gaps: list[float]) -> dict[str, Any]:
        return {} if self._prompt_ids is None else {"token_ids": ids, "logit_gaps": gaps}

    def _choice(self, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "finish_reason": reason, "logprobs": None}

    def _whole_choice(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _chunk_choice(self, text: str) -> dict[str, Any]:
        return {"text": text}


class ChatReply(Reply):
    """Shapes of one chat's answer."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    prompt_ids_in_choice = False

    def opening(self) -> dict[str, Any]:
        """The chunk that names the role."""
        chunk = self.chunk("", [], [])
        chunk["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        return self._first(chunk)

    def _whole_choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _chunk_choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


def usage_of(prompt_tokens: int, done: Done) -> dict[str, Any]:
    """OpenAI's usage object; cached tokens are those whose KV was read instead of computed."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
