"""Rates of lines, which are named in bits a second, other than those of storage."""

import re

from dualpath.core.errors import ConfigError

_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*(/s)?\s*", re.IGNORECASE)


def parse_bit_rate(text: str) -> int:
    """Bits a second named by text such as "800Mbit/s" or "400Gbit"."""
    match = _RATE.fullmatch(text)
    if not match or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise ConfigError(f"cannot read {text!r} as the rate of a line; write for example 800Mbit/s or 400Gbit/s")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bit_rate(bits_per_s: float) -> str:
    """A rate for people: decimal units."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_s < 1000:
            return f"{bits_per_s:.4g} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:.4g} Gbit/s"
