"""`Retry-After` (RFC 9110, 10.2.3): how long a target asks to be left alone.

Both forms are read: seconds, and an HTTP date in its current and its two obsolete spellings (5.6.7).
The law: whatever a receiver writes becomes a finite number of seconds that is not negative, or None.
"""

import re
import sys
from datetime import UTC, datetime

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = [
    re.compile(text, re.ASCII | re.IGNORECASE)
    for text in (
        rf"[a-z]{{3}}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",  # IMF-fixdate
        rf"[a-z]{{6,9}}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",  # RFC 850
        rf"[a-z]{{3}} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",  # asctime
    )
]
_SECONDS = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def retry_after(value: str, now: float) -> float | None:
    """Return the seconds from `now` (Unix seconds) for which `value` asks, or None for garbage.

    A time in the past, or a negative number, is 0.  There is no upper limit here: capping is policy.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(max(float(text), 0.0), sys.float_info.max)
    instant = http_date(text, now)
    return None if instant is None else max(instant - now, 0.0)


def http_date(text: str, now: float) -> float | None:
    """Return an HTTP date in Unix seconds, or None where `text` is none.

    `now` (Unix seconds) decides the century of a year of two digits: never more than 50 years ahead.
    """
    for pattern in _DATES:
        if found := pattern.fullmatch(text):
            return _instant(found, now)
    return None


def _instant(found: re.Match[str], now: float) -> float | None:
    year = int(found["year"])
    if len(found["year"]) == 2:
        year = _century(year, datetime.fromtimestamp(now, UTC).year)
    month = _MONTHS.index(found["month"].lower()) + 1
    # A leap second is the next minute's first second to Unix time.
    second = min(int(found["second"]), 60)
    try:
        minute_start = datetime(
            year, month, int(found["day"]), int(found["hour"]), int(found["minute"]), tzinfo=UTC
        )
    except ValueError:
        return None
    return minute_start.timestamp() + second


def _century(two_digits: int, this_year: int) -> int:
    latest = this_year + 50
    return latest - (latest - two_digits) % 100
