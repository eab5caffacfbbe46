"""Durations, sizes, rates and instants as text: `250ms`, `256KiB`, `100/s`, `2030-01-31T12:00:00Z`.

One grammar for settings and subscriptions.  A unit is always written out, because a bare `5` is read
as seconds by one person and as milliseconds by the next; only a size may go without (bytes).  Every
parser raises ValueError with a message that says what to write instead.
"""

import re
from datetime import UTC, datetime
from types import MappingProxyType

_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_QUANTITY = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_RATE = re.compile(rf"(?P<number>{_NUMBER})\s*/\s*(?P<unit>[A-Za-z]+)", re.ASCII)
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:(?P<second>\d\d)(?:\.\d{1,30})?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SECONDS = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0})
"""Units of a duration, in seconds."""

BYTES = MappingProxyType(
    {
        "": 1,
        "b": 1,
        "kib": 1024,
        "mib": 1024**2,
        "gib": 1024**3,
        "kb": 1000,
        "mb": 1000**2,
        "gb": 1000**3,
    }
)
"""Units of a size, in bytes, by their name in lower case."""

_RATE_UNITS = ("s", "m", "h", "d")


def parse_duration(text: str) -> float:
    """Return the seconds of `250ms`, `5s`, `1.5m`, `2h` or `1d`; zero is allowed, a sign is not.

    Raises ValueError where the number or the unit is missing or unknown.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{_shown(text)} is not a duration: write a number and a unit, such as 5s")
    number, unit = match["number"], match["unit"]
    if not unit:
        raise ValueError(f"{_shown(text)} has no unit: write {number}s for seconds")
    if unit not in SECONDS:
        raise ValueError(f"{_shown(text)} has an unknown unit: use ms, s, m, h or d")
    # Dividing keeps 250ms at exactly 0.25; multiplying by 0.001 would not for every number.
    return float(number) / 1000 if unit == "ms" else float(number) * SECONDS[unit]


def parse_size(text: str) -> int:
    """Return the bytes of `262144`, `256KiB`, `1.5MiB` or `1MB` (letter case does not matter).

    Raises ValueError where the number or the unit is wrong, or a byte would be split.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{_shown(text)} is not a size: write bytes, or a unit such as 256KiB")
    factor = BYTES.get(match["unit"].lower())
    if factor is None:
        raise ValueError(f"{_shown(text)} has an unknown unit: use B, KiB, MiB, GiB, kB, MB or GB")
    whole, _, fraction = match["number"].partition(".")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * factor, scale)
    if rest:
        raise ValueError(f"{_shown(text)} is not a whole number of bytes")
    return size


def parse_rate(text: str) -> float:
    """Return how many per second `100/s`, `30/m`, `0.5/s`, `1000/h` or `5000/d` allows.

    Raises ValueError where the form is another, and for zero: a subscription that must not be
    delivered to is disabled, not limited.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{_shown(text)} is not a rate: write a number per unit, such as 100/s")
    if match["unit"] not in _RATE_UNITS:
        raise ValueError(f"{_shown(text)} has an unknown unit: use /s, /m, /h or /d")
    rate = float(match["number"]) / SECONDS[match["unit"]]
    if rate <= 0:
        raise ValueError(f"{_shown(text)} allows nothing: a rate is more than zero")
    return rate


def parse_rfc3339(text: str) -> float:
    """Return the Unix seconds of an RFC 3339 date-time, to the microsecond.

    A leap second (`:60`) counts as the second after `:59`.  Raises ValueError where the form is
    another, such as a time without an offset, or where no such instant exists.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{_shown(text)} is not an RFC 3339 time: write 2030-01-31T12:00:00Z")
    leap = match["second"] == "60"
    shape = f"{text[:17]}59{text[19:]}" if leap else text
    try:
        instant = datetime.fromisoformat(shape.upper())
    except ValueError as error:
        raise ValueError(f"{_shown(text)} does not exist: {error}") from None
    return (instant - _EPOCH).total_seconds() + leap


def render_rfc3339(instant: datetime) -> str:
    """Return an instant as RFC 3339 in UTC with `Z`; one without a time zone is taken for UTC.

    Fractions are written only where there are any.  Raises ValueError next to the year 1 or 9999,
    where UTC lies outside of what can be written.
    """
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    try:
        return aware.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
    except OverflowError:
        raise ValueError("the time lies outside of the years 1 to 9999") from None


def _shown(text: str) -> str:
    """Return the text as a message may quote it: bounded, control characters escaped."""
    return repr(text if len(text) <= 40 else text[:40] + "…")
