"""When a generation ends: the rule that prefill (first token) and decode (all others) share."""

from pathlib import Path

from tokenizers import Tokenizer

from dualpath.core.model import ModelSpec
from dualpath.core.request import FinishReason, Sampling
from dualpath.engine.stop import StopMatcher


class StopRule:
    """Makes one Ending a request; loads the tokenizer when the first request has stop strings."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._tokenizer: Tokenizer | None = None

    def ending(self, sampling: Sampling, max_tokens: int) -> "Ending":
        """The rule for one request."""
        eos = () if sampling.ignore_eos else self._spec.eos_tokens
        return Ending(eos, max_tokens, self._matcher(sampling.stop))

    def _matcher(self, stop: tuple[str, ...]) -> StopMatcher | None:
        if not stop:
            return None
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(str(Path(self._spec.path) / "tokenizer.json"))
        return StopMatcher(self._tokenizer, stop)


class Ending:
    """Counts one request's generated tokens."""

    def __init__(self, eos: tuple[int, ...], max_tokens: int, matcher: StopMatcher | None) -> None:
        self._eos = eos
        self._max_tokens = max_tokens
        self._matcher = matcher
        self.count = 0

    def push(self, token: int) -> FinishReason | None:
        """Take the next token; tells why it is the last one, if it is."""
        self.count += 1
        if token in self._eos or (self._matcher and self._matcher.push(token)):
            return FinishReason.STOP
        return FinishReason.LENGTH if self.count >= self._max_tokens else None
