"""Parsing and printing of quantities: bytes, rates, durations. Decimal units (MB = 10**6) and binary ones (MiB)."""

import re

from dualpath.core.errors import ConfigError

_SIZES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_BIT_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*(/s)?\s*")

NS_PER_S = 1_000_000_000


def parse_bytes(text: str) -> int:
    """Bytes named by text such as "64MiB", "20MB" or "4096"."""
    return _parse(text, rate=False)


def parse_rate(text: str) -> int | None:
    """Bytes a second named by text such as "20MB/s" or "100Mbit/s"; None for "none", "off" or "unlimited"."""
    if text.strip().lower() in ("none", "off", "unlimited"):
        return None
    rate = _parse(text, rate=True)
    if rate <= 0:
        raise ConfigError(f'rate {text!r} must be positive; write "none" for no limit')
    return rate


def format_bytes(count: float) -> str:
    """A count of bytes for people: 3 significant digits, decimal units."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_bit_rate(bits_per_s: float) -> str:
    """A line's rate for people: 4 significant digits, decimal units."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_s < 1000:
            return f"{bits_per_s:.4g} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:.4g} Gbit/s"


def _parse(text: str, *, rate: bool) -> int:
    match = _QUANTITY.fullmatch(text)
    unit = match and match[2].lower()
    if match and rate and unit in _BIT_RATES:
        return int(float(match[1]) * _BIT_RATES[unit] / 8)
    if not match or unit not in _SIZES or (match[3] and not rate):
        example = "20MB/s, 100Mbit/s or none" if rate else "64MiB, 20MB or 4096"
        raise ConfigError(f"cannot read {text!r} as {'a rate' if rate else 'a size'}; write for example {example}")
    return int(float(match[1]) * _SIZES[unit])
