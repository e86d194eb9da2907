"""Every value of a Config as a flag, built from the same fields that the file is read into."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec
import typer

from dualpath.core.config_file import load_config, sections

Command = Callable[..., None]


class Flag(NamedTuple):
    """One value of a Config and how the command line names it."""

    section: str
    name: str
    text: str  # "--read-policy"
    parameter: inspect.Parameter  # as typer reads it

    @property
    def key(self) -> str:
        """Name of the parameter, unique over all sections."""
        return self.parameter.name


def config_flags() -> Iterator[Flag]:
    """A flag for every value of every section."""
    for section in sections():
        types = get_type_hints(section.type)
        hints = get_type_hints(section.type, include_extras=True)
        for field in msgspec.structs.fields(section.type):
            yield _flag(section.name, field.name, types[field.name], get_args(hints[field.name])[1], field.default)


def _flag(section: str, name: str, kind: Any, meta: msgspec.Meta, default: Any) -> Flag:
    assert meta.extra is not None
    shown = "" if default in ("", None) else f" Default: {default}."
    text = "--" + (meta.extra["flag"] or name.replace("_", "-"))
    option = typer.Option(
        text,
        help=f"{meta.description}{shown}",
        rich_help_panel=f"Config: {section}",
    )
    parameter = _parameter(f"{section}_{name}", Annotated[kind | None, option])
    return Flag(section, name, text, parameter)


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_config(command: Command, *, without: Collection[str] = ()) -> Command:
    """Replace a command's parameter `config: Config` by --config FILE and a flag for every value.

    `without` names values (section_name) that get no flag, as the command has another use for them.
    """
    flags = [flag for flag in config_flags() if flag.key not in without]
    file_option = typer.Option("--config", help="TOML file; flags override it.", metavar="FILE")
    hints = get_type_hints(command, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    parameters = [
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "config"),
        _parameter("config", Annotated[Path | None, file_option]),
        *(flag.parameter for flag in flags),
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        overrides: dict[str, dict[str, Any]] = {}
        for flag in flags:
            value = given.pop(flag.key)
            if value is not None:
                overrides.setdefault(flag.section, {})[flag.name] = value
        command(config=load_config(given.pop("config"), overrides), **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
