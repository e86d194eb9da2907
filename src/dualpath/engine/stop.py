"""Stop strings: text grows token by token, characters may span tokens, and a stop string may span both."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from dualpath.core.errors import RequestError

# A UTF-8 character has at most 4 bytes: an end still undecodable after this many tokens will stay so.
MAX_PARTIAL_TOKENS = 4


class StopMatcher:
    """Says when the generated text (special tokens left out) contains one of the stop strings."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        if not all(stop):
            raise RequestError("stop strings must not be empty", param="stop")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._ids: list[int] = []  # the previous piece, as context, then tokens whose text is not out yet
        self._shown = 0  # how many of _ids are context
        self._tail = ""

    def push(self, token: int) -> bool:
        """Take the next token; True once the text so far contains a stop string."""
        if not self._stop:
            return False
        self._tail += self._new_text(token)
        found = any(stop in self._tail for stop in self._stop)
        if not found:
            self._tail = self._tail[max(0, len(self._tail) - self._longest + 1) :]
        return found

    def _new_text(self, token: int) -> str:
        """The text that `token` completes: empty while it ends in the middle of a character."""
        self._ids.append(token)
        before = self._decode(self._ids[: self._shown])
        text = self._decode(self._ids)
        partial = len(self._ids) - self._shown < MAX_PARTIAL_TOKENS
        if text.endswith("\ufffd") and partial:
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
