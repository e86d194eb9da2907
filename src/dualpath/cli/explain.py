"""Where the time of one request went."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Column, Table

from dualpath.core.errors import ServiceError
from dualpath.core.units import format_bytes


def explain(
    request: Annotated[
        str, typer.Argument(metavar="ID", help="Id of a request: the x-request-id header of its answer.")
    ],
    url: Annotated[str, typer.Option(help="Address of the cluster.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(envvar="DUALPATH_API_KEY", help="Its key, if it has one.")] = "",
) -> None:
    """Say where the time of a finished request went: queues, reads on both sides, prefill, decode."""
    from rich.console import Console

    found = _fetch(f"{url.rstrip('/')}/explain/{quote(request, safe='')}", api_key)
    timeline = found["timeline"]
    console = Console(highlight=False, markup=False)
    console.print(
        f"{found['id']}: {found['prompt_tokens']} prompt tokens ({found['cached_tokens']} cached), "
        f"{found['completion_tokens']} generated, ended by {found['finish_reason']}"
    )
    console.print(_table(found["spans"]))
    console.print(
        f"prefill on {timeline['prefill_engine']}, decode on {timeline['decode_engine']}; read from storage: "
        f"{format_bytes(timeline['read_bytes_prefill'])} by the prefill node, "
        f"{format_bytes(timeline['read_bytes_decode'])} by the decode node, "
        f"{format_bytes(timeline['read_bytes_relay'])} by a third one"
    )
    for cause in timeline["recompute_causes"]:
        console.print(f"started again: {cause}")


def _table(spans: dict[str, int | None]) -> Table:
    table = Table("span", Column("ms", justify="right"))
    for name, duration_ns in spans.items():
        shown = "-" if duration_ns is None else f"{duration_ns / 1e6:.1f}"
        table.add_row(name.removesuffix("_ns").replace("_", " "), shown)
    return table


def _fetch(address: str, api_key: str) -> dict[str, Any]:
    import httpx

    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(address, headers=headers, trust_env=False)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(f"no cluster answers at {address} ({error}); give its address with --url") from None
    if answer.is_error:
        raise ServiceError(body.get("error", {}).get("message", f"{address} answered {answer.status_code}"))
    return dict(body)
