"""Errors of object services in plain words with their mend.

The client library's texts quote URLs, queries and whole answers, which may hold credentials. So none of it is passed
on: only a status, a code and a kind of failure are picked out, and the errors that people see have no cause attached.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from dualpath.core.errors import ConfigError, StoreUnavailable

_STATUS = re.compile(r"status code: ([0-9]{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z]{1,40})</Code>")
_OPERATOR_MENDS = {  # what the library's text has -> what the operator has to do
    r"169\.254\.169\.254|metadata\.google|MissingAccount|MissingCredential": "no credentials: set AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY (or the GOOGLE_, AZURE_ ones) in the environment of every role",
    r"builder error": "the endpoint is plain http: use https, or set AWS_ALLOW_HTTP=true if you trust the network",
    r"NoSuchBucket|bucket does not exist|ContainerNotFound": "there is no such bucket: make it, or check its name",
    r"status code: 40[13]|Unauthenticated|PermissionDenied": "the service refuses the credentials: check "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the GOOGLE_, AZURE_ ones) and what they may do there",
    r"status code: 30[0-9]|redirect": "the bucket is elsewhere: set AWS_REGION and AWS_ENDPOINT_URL to its place",
    r"Unable to|Missing|Unknown|Invalid(Url|Bucket|Configuration)|InvalidBucketName": "the address or a setting of the "
    "environment is not valid: write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
}
_TROUBLES = {
    r"status code: (429|503)": "it is overloaded: use a smaller storage.read_concurrency or a larger service",
    r"status code: 507": "it is full: free some space",
    r"kind: Connect\b": "it takes no connections: check that it runs, its address (AWS_ENDPOINT_URL) and the network",
    r"kind: (Timeout|TimedOut)|TimedOut": "it did not answer in time: check the network and the service's load",
    r"kind: (Interrupted|Request)|response body error|error sending request": "the connection was lost: check the "
    "network and that the service runs",
    r"NotFound": "the bucket is gone: make it again, then restart this process",
}


def explain(error: Exception) -> str:
    """What went wrong and how to mend it, without a word of the library's own."""
    text = f"{type(error).__name__} {error}"
    for pattern, mend in {**_OPERATOR_MENDS, **_TROUBLES}.items():
        if re.search(pattern, text):
            return mend + _answer(text)
    return f"the service failed: look into its log{_answer(text)}"


def is_operators(error: Exception) -> bool:
    """Whether the operator named the wrong place or credentials, which no retry mends."""
    text = f"{type(error).__name__} {error}"
    return isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
        re.search(pattern, text) for pattern in _OPERATOR_MENDS
    )


@contextmanager
def unavailable(action: str, place: str) -> Iterator[None]:
    """Turn any error of the library into StoreUnavailable that says what was tried where."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"cannot {action} {place}: {explain(error)}") from None


@contextmanager
def unusable(place: str) -> Iterator[None]:
    """Like unavailable, for the first use: ConfigError where the operator is to mend it."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(
            f"cannot use {place} as a store: there is no such bucket: make it, or check its name"
        ) from None
    except (BaseError, OSError, ValueError) as error:
        kind = ConfigError if is_operators(error) or isinstance(error, ValueError) else StoreUnavailable
        raise kind(f"cannot use {place} as a store: {explain(error)}") from None


def _answer(text: str) -> str:
    found = [match[1] for match in (_STATUS.search(text), _CODE.search(text)) if match]
    return f" (answer: {' '.join(found)})" if found else ""
