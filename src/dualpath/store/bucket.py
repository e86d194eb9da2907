"""From the operator's URL to a bucket of obstore, with its deadlines and retries."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import obstore.store
from obstore.store import S3Store

from dualpath.core.errors import ConfigError
from dualpath.store.objecterrors import unusable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

ENVIRONMENT = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
ENVIRONMENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_excludes")
CONNECT_S = 2.0  # longest set-up of one connection
SILENCE_S = 3.0  # longest pause within an answer
FIRST_BACKOFF_S = 0.1  # doubles with each retry, with jitter
LONGEST_BACKOFF_S = 2.0
MAX_RETRIES = 20  # more than fit into any sensible deadline: the deadline ends them


def open_bucket(url: str, *, deadline_s: float) -> obstore.store.ObjectStore:
    """The bucket, or the part of it below a prefix; settings and credentials are the environment's.

    A request with its retries takes at most two thirds of `deadline_s`. Nothing is sent yet; ConfigError if the URL
    cannot be read.
    """
    if not urlsplit(url).netloc:
        raise ConfigError(f"{url} names no bucket: write {urlsplit(url).scheme}://bucket/prefix")
    client, retry = client_options(urlsplit(url).scheme, deadline_s), retry_config(deadline_s)
    with unusable(url):
        if url.startswith("s3:"):  # without bulk deletes, which fail for absent keys on some services
            return S3Store.from_url(url, client_options=client, retry_config=retry, disable_bulk_delete=True)
        return obstore.store.from_url(url, client_options=client, retry_config=retry)


def environment_options(scheme: str) -> dict[str, str]:
    """Options of connections that the environment sets; the library forgets them when it is given any others."""
    prefix = ENVIRONMENT.get(scheme, "")
    named = {option: f"{prefix}_{option.upper()}" for option in ENVIRONMENT_OPTIONS}
    return {option: os.environ[name] for option, name in named.items() if name in os.environ}


def client_options(scheme: str, deadline_s: float) -> "ClientConfig":
    """Deadlines of one request, and what the environment says of connections."""
    from_environment = cast("ClientConfig", environment_options(scheme))
    return {
        **from_environment,
        "timeout": timedelta(seconds=deadline_s / 3),
        "connect_timeout": timedelta(seconds=min(CONNECT_S, deadline_s / 3)),
        "read_timeout": timedelta(seconds=min(SILENCE_S, deadline_s / 6)),
    }


def retry_config(deadline_s: float) -> "RetryConfig":
    """Retries of one request: after connection errors, 5xx, 408 and 429."""
    return {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=deadline_s / 3),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_BACKOFF_S),
            "max_backoff": timedelta(seconds=LONGEST_BACKOFF_S),
            "base": 2,
        },
    }
