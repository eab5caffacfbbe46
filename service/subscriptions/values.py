"""Texts of the file turned into values: durations, rates, URLs, headers.

Each function raises `ValueError` with what must be, and never quotes what was written: a URL or a
header may hold a credential.
"""

import re
from collections.abc import Callable
from ipaddress import IPv6Address

from yarl import URL

from service.core.units import SECONDS, parse_duration, parse_rate

_URL = re.compile(
    r"https?://(?:[^ /?#@\\\[\]]*@)?(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:[/?][^ #\\]*)?"
)
_HOST_NAME = re.compile(r"(?=.{1,254}$)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
RATE_PATTERN = r"^[0-9]+(\.[0-9]+)?/(s|m|h|d)$"

_OWN_HEADERS = frozenset({
    "webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256",
    "content-type", "content-length", "content-encoding", "accept-encoding", "host",
    "connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "expect", "traceparent", "tracestate",
})  # fmt: skip


def duration(value: object, shortest: float, longest: float) -> float:
    """Return the seconds that a text such as `250ms`, `5s`, `5m`, `2h` or `1d` means; 0 may be bare."""
    if value == 0 and type(value) is int:
        seconds = 0.0
    else:
        seconds = _read(
            parse_duration, value, "a duration with its unit, such as 250ms, 5s, 5m, 2h or 1d"
        )
    if not shortest <= seconds <= longest:
        raise ValueError(f"must be from {duration_text(shortest)} to {duration_text(longest)}")
    return seconds


def duration_text(seconds: float) -> str:
    """Write seconds with the largest unit that leaves no fraction: `36h`, `250ms`."""
    for unit, size in reversed(list(SECONDS.items())):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds * 1000:g}ms" if seconds else "0s"


def rate(value: object) -> float:
    """Return attempts per second of a text such as `100/s`, `600/m` or `1000/h`."""
    return _read(parse_rate, value, "a rate above zero, such as 100/s, 600/m or 1000/h")


def _read(parse: Callable[[str], float], value: object, wanted: str) -> float:
    try:
        if isinstance(value, str) and " " not in value:
            return parse(value)
    except ValueError:
        pass  # its message quotes what was written
    raise ValueError(f"must be {wanted}")


def url(value: str) -> str:
    """Check a target's URL and return it unchanged; userinfo is allowed, for Basic authentication."""
    match = _URL.fullmatch(value) if value.isascii() and value.isprintable() else None
    if match is None or not 1 <= int(match["port"] or 1) <= 65535 or not _is_host(match):
        raise ValueError(_url_problem(value))
    return value


def _is_host(url: re.Match[str]) -> bool:
    if url["ipv6"] is None:
        return _HOST_NAME.fullmatch(url["name"]) is not None and _is_decodable(url)
    try:
        IPv6Address(url["ipv6"])
    except ValueError:
        return False
    return True


def _is_decodable(url: re.Match[str]) -> bool:
    """Tell whether every label that begins as Punycode (RFC 5890, `xn--`) is, as who connects wants."""
    if "xn--" not in url["name"].lower():
        return True
    try:
        _ = URL(url[0]).host
    except ValueError:  # UnicodeError is one
        return False
    return True


def _url_problem(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        return "must be a URL in ASCII without spaces, backslashes or control characters"
    if not value.startswith(("https://", "http://")):
        return "must be a URL that starts with https:// (or http://)"
    if "#" in value:
        return "must be a URL without a fragment (#): it would never be sent"
    userinfo, at = _userinfo(value)
    if at and re.search(r"[\[\]]", userinfo):
        return "must be a URL with brackets in the user or password percent-encoded: %5B and %5D"
    return "must be a URL with a valid host and port"


def has_userinfo(url: str) -> bool:
    """Tell whether a URL holds a user or password."""
    return any(_userinfo(url))


def _userinfo(url: str) -> tuple[str, str]:
    """Return what stands before the `@` of a URL's host, and the `@` if there is one."""
    userinfo, at, _ = re.split("[/?]", url.partition("://")[2])[0].rpartition("@")
    return userinfo, at


def header_name(name: str) -> str:
    """Check a header's name: a token (RFC 9110, 5.6.2) that the dispatcher does not set itself."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("must be header names: letters, digits and hyphens")
    if name.lower() in _OWN_HEADERS or name.lower().startswith("ce-"):
        raise ValueError(f"must not set {name}: the dispatcher sets it")
    return name


def header_value(value: str) -> str:
    """Check a header's value: printable ASCII without spaces at either end (RFC 9110, 5.5)."""
    if not _HEADER_VALUE.fullmatch(value) or value != value.strip():
        raise ValueError("must be printable ASCII without control characters or spaces at its ends")
    return value
