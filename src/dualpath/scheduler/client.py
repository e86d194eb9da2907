"""The one interface through which the gateway uses the cluster."""

from collections.abc import AsyncIterator
from typing import Protocol

from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.core.request import Done, Ready, Submission, Tokens


class SchedulerClient(Protocol):
    """Implemented by `scheduler.zmq_client`; tests pass fakes."""

    @property
    def spec(self) -> ModelSpec:
        """The model that the cluster serves."""

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt + max_tokens that an arena and a decode engine can hold."""

    @property
    def urls(self) -> list[str]:
        """Decode engines that take requests by HTTP."""

    def submit(self, submission: Submission) -> AsyncIterator[Tokens | Ready | Done]:
        """Serve a request: Tokens in order of their index, without repetition, then one Done.

        Engines that compute what comes by HTTP send no Tokens but a Ready each; a second one of a role replaces the
        first: another attempt has begun.

        Raises RequestError (the request can never be served) or ServiceError (not now). Closing the iterator early
        (aclose) cancels the request and frees its work.
        """

    async def report(self) -> ClusterReport:
        """The cluster's state now; ServiceError when the scheduler does not answer."""
