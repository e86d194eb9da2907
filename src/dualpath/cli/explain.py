"""Where the time of one request went."""

from typing import Annotated

import typer


def explain(
    request: Annotated[str, typer.Argument(metavar="ID", help="Id of a request: `id` of its answer.")],
    url: Annotated[str, typer.Option(help="Address of the cluster.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(envvar="DUALPATH_API_KEY", help="Its key, if it has one.")] = "",
) -> None:
    """Say where the time of a finished request went: queues, reads on both sides, prefill, decode."""
    import httpx
    from rich.console import Console

    from dualpath.core.errors import ServiceError

    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/explain/{request}", headers=headers, trust_env=False)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(f"no cluster answers at {url} ({error}); give its address with --url") from None
    if answer.is_error:
        raise ServiceError(body.get("error", {}).get("message", f"{url} answered {answer.status_code}"))
    Console().print_json(data=body)
