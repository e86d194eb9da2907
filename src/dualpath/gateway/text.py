"""From generated tokens to text that is safe to send: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

import tokenizers

REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are no character, or not yet
MAX_WINDOW_TOKENS = 64  # bounds the work of a model that generates no valid UTF-8


class Detokenizer:
    """Text of a growing token sequence in parts that sum up to the whole; special tokens are left out.

    Decodes a short window: the tokens since the last part and those of that part, which give the decoder the
    context it needs (leading spaces). A part never ends within a character; `finish` gives what was held
    back.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._window: list[int] = []
        self._context = 0  # leading tokens of the window whose text was given out
        self._given = 0  # characters of the window's text that were given out

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain by these tokens; may be empty."""
        self._window.extend(ids)
        text = self._backend.decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        if len(whole) < len(text) and len(self._window) - self._context <= MAX_WINDOW_TOKENS:
            return self._give(whole)
        part = self._give(text)
        if not part and len(self._window) <= MAX_WINDOW_TOKENS:
            return part
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._given = len(self._backend.decode(self._window))
        return part

    def finish(self) -> str:
        """The rest, with replacement characters for an unfinished character."""
        return self._give(self._backend.decode(self._window))

    def _give(self, text: str) -> str:
        part = text[self._given :]
        self._given = max(self._given, len(text))
        return part


class StopCutter:
    """Passes text on up to the first stop string, holding back what may still become one.

    First = the one that is complete first; among those that end together the longest, so the result does not
    depend on how the text was cut into parts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._pending = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certainly before any stop string; empty after one was found."""
        if self.stopped:
            return ""
        self._pending += text
        hits = [(at + len(stop), at) for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if hits:
            self.stopped = True
            return self._take(min(hits)[1])
        return self._take(len(self._pending) - self._possible_start())

    def finish(self) -> str:
        """What was held back, when no stop string came of it."""
        return "" if self.stopped else self._take(len(self._pending))

    def _possible_start(self) -> int:
        """Length of the longest end of the pending text with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops):
                return length
        return 0

    def _take(self, count: int) -> str:
        part, self._pending = self._pending[:count], self._pending[count:]
        return part


class AnswerText:
    """Detokenizer and StopCutter in a row: what one request's answer shows."""

    def __init__(self, backend: tokenizers.Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(backend)
        self._cutter = StopCutter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._cutter.stopped

    def push(self, ids: Sequence[int]) -> str:
        """Text to send after these tokens."""
        return self._cutter.push(self._detokenizer.push(ids))

    def finish(self) -> str:
        """Text to send at the end."""
        return self._cutter.push(self._detokenizer.finish()) + self._cutter.finish()
