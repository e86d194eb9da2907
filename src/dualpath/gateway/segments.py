"""Cache of token ids by text segment: a long session is not tokenised from its start on every turn.

A tokenizer first cuts the raw text at its added tokens (leftmost, then longest match) and handles each piece
between them on its own. So the ids of a text are the ids of its segments, each ending with such a token, put
together. That is exact for tokenizers whose added tokens neither swallow white space nor look at their
neighbours, and whose pre-tokenizer treats all pieces alike; any other tokenizer is used without the cache.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator

import msgspec
import tokenizers

CACHE_CHARS = 32 * 2**20


class SegmentCache:
    """Encodes text with a bounded LRU memory of segments. Not thread-safe."""

    def __init__(self, backend: tokenizers.Tokenizer, *, max_chars: int = CACHE_CHARS) -> None:
        self._backend = backend
        self._cut = hard_tokens(backend)
        self._max_chars = max_chars
        self._chars = 0
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self.encoded_chars = 0  # characters that the tokenizer has seen, as opposed to those found here

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without what a post-processor would add; equals a full encode."""
        ids: list[int] = []
        for segment, closed in self._segments(text):
            ids.extend(self._lookup(segment) if closed else self._encode(segment))
        return ids

    def _segments(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in pieces, and whether a piece ends with a hard token (the last one may not)."""
        start = 0
        for match in self._cut.finditer(text) if self._cut else ():
            yield text[start : match.end()], True
            start = match.end()
        if start < len(text):
            yield text[start:], False

    def _lookup(self, segment: str) -> "array[int]":
        found = self._ids.get(segment)
        if found is not None:
            self._ids.move_to_end(segment)
            return found
        ids = array("I", self._encode(segment))
        self._ids[segment] = ids
        self._chars += len(segment)
        while self._chars > self._max_chars:
            self._chars -= len(self._ids.popitem(last=False)[0])
        return ids

    def _encode(self, text: str) -> list[int]:
        self.encoded_chars += len(text)
        return self._backend.encode(text, add_special_tokens=False).ids


def hard_tokens(backend: tokenizers.Tokenizer) -> "re.Pattern[str] | None":
    """A pattern for the added tokens that cut the raw text; None when cutting there would not be exact.

    Longest first: a regular expression takes the first alternative, the tokenizer the longest.
    """
    raw = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized and token.content]
    settings = msgspec.json.decode(backend.to_str())
    if any(token.lstrip or token.rstrip or token.single_word for token in raw) or not raw:
        return None
    if b'"first"' in msgspec.json.encode(settings["pre_tokenizer"]):  # Metaspace marks only the text's first piece
        return None
    return re.compile("|".join(re.escape(t.content) for t in sorted(raw, key=lambda t: -len(t.content))))
