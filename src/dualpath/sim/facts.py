"""Data files in which every value names its source, and says so when it is an assumption."""

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from dualpath.core.errors import ConfigError

_DATA = Path(__file__).parent / "data"


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value, where it comes from, and whether it is only assumed because nobody published it."""

    value: int | float | str | bool | list[Any]
    source: str
    assumption: bool = False


def find_data(kind: Literal["hardware", "models"], name_or_path: str) -> Path:
    """The file of a name that this package carries, or of a path; ConfigError names the known ones."""
    carried = _DATA / kind / f"{name_or_path}.toml"
    if carried.parent == _DATA / kind and carried.is_file():
        return carried
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise ConfigError(f"no {kind} data {name_or_path!r}: name a file, or one of {', '.join(data_names(kind))}")


def data_names(kind: Literal["hardware", "models"]) -> list[str]:
    """All names that this package carries data of."""
    return sorted(file.name.removesuffix(".toml") for file in (_DATA / kind).glob("*.toml"))


def read_facts(file: Path) -> dict[str, Fact]:
    """All facts of a TOML file; those of a table get dotted names (flops.fp8). ConfigError if one has no source."""
    try:
        return _facts(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no data file: {error}") from None


def _facts(table: dict[str, Any], prefix: str = "") -> dict[str, Fact]:
    facts: dict[str, Fact] = {}
    for key, entry in table.items():
        if isinstance(entry, dict) and "value" not in entry:
            facts |= _facts(entry, f"{prefix}{key}.")
            continue
        try:
            fact = msgspec.convert(entry, Fact)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(f"{prefix}{key}: {error}; write {{value=..., source=...}}") from None
        if not fact.source.strip():
            raise msgspec.ValidationError(f"{prefix}{key} names no source")
        facts[prefix + key] = fact
    return facts
