"""The model's tokenizer and chat template, without torch or transformers."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from dualpath.core.errors import ConfigError, RequestError
from dualpath.gateway.chat_template import ChatTemplate, load_chat_template
from dualpath.gateway.segments import SegmentCache
from dualpath.gateway.text import AnswerText


class Tokenizer:
    """Text to tokens and back. Use `encode_*` from one thread at a time; answers are independent.

    Text of special tokens inside a prompt or a message becomes those tokens, as in transformers.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template
        self._segments = SegmentCache(backend)
        self._before, self._after = _added_around(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and chat template of a Hugging Face folder; ConfigError when absent."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give a model folder with a fast tokenizer (tokenizer.json)")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{path} is not a tokenizer that this version can read: {error}") from None
        return cls(backend, load_chat_template(folder))

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a plain prompt, with the tokens that the model's post-processor puts around it (BOS)."""
        return self._before + self._segments.encode(text) + self._after

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Tokens of a chat; the template alone decides on special tokens. RequestError without a template."""
        if self._template is None:
            raise RequestError("this model has no chat template; use /v1/completions", param="messages")
        return self._segments.encode(self._template.render(messages))

    def answer(self, stops: Sequence[str] = ()) -> AnswerText:
        """The text of one answer, to be fed token by token."""
        return AnswerText(self._backend, stops)


def _added_around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after every text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise ConfigError("the tokenizer's post-processor changes the text's own tokens; this version cannot serve it")
