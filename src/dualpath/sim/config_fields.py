"""Typed look-ups in a Hugging Face config.json; what is missing or wrong is named."""

from collections.abc import Mapping
from typing import Any

from dualpath.core.errors import ConfigError

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32}  # mxfp4: 32 share a scale


class Fields:
    """The fields of one model's config.json."""

    def __init__(self, model: str, config: Mapping[str, Any]) -> None:
        self.model = model
        self._config = config

    def count(self, name: str) -> int:
        """A whole number above zero that must be there."""
        value = self.first(name)
        if not value:
            raise ConfigError(f"config.json of {self.model} has no {name}: not a decoder-only model of a known shape")
        return value

    def first(self, *names: str) -> int | None:
        """The first of some whole numbers that is given; None for none, or null."""
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
                raise ConfigError(f"config.json of {self.model}: {name} must be a count, not {value!r}")
            return int(value)
        return None

    def flag(self, name: str) -> bool:
        """True only if it is given so."""
        return bool(self._config.get(name))

    def names(self, name: str) -> list[Any]:
        """A list; empty when it is not given."""
        value = self._config.get(name) or []
        if not isinstance(value, list):
            raise ConfigError(f"config.json of {self.model}: {name} must be a list, not {value!r}")
        return value

    def text(self, *names: str) -> str | None:
        """The first of some strings that is given."""
        return next((value for name in names if isinstance(value := self._config.get(name), str)), None)

    def table(self, name: str) -> Mapping[str, Any]:
        """A nested object; empty when it is not given."""
        value = self._config.get(name)
        return value if isinstance(value, dict) else {}


def dtype_of(fields: Fields, part: str) -> str:
    """How `part` (weight, expert, kv) is stored: as said, else as the quantization says, else as the model's dtype."""
    plain = fields.text("dtype", "torch_dtype") or "bfloat16"
    quantized = str(fields.table("quantization_config").get("quant_method", plain))
    default = {"weight": "fp8" if quantized == "fp8" else plain, "kv": plain}.get(part)
    if default is None:
        default = quantized if quantized in ("fp8", "mxfp4") else dtype_of(fields, "weight")
    dtype = fields.text(f"{part}_dtype") or default
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{part} dtype {dtype!r} of {fields.model} is unknown; take one of {', '.join(DTYPE_BYTES)}")
    return dtype
