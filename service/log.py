"""The set-up of structlog: one JSON object a line on standard output, or text for people.

What a line may say is the law of `service.catalogue`.
"""

import asyncio
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

import orjson
import structlog

from service import __version__
from service.line_schema import SERVICE

LAST_LINES = 2.0
"""Seconds that the last lines have to leave the process."""
GATHER = 0.002
"""Seconds for which lines are gathered before they are written."""
RETRY_AFTER = 0.02
"""Seconds between two looks for room in a pipe that is full."""


class Log(Protocol):
    """What stages and shells know of logging: a level, an event name, fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...  # noqa: D102 - one method a level

    def info(self, event: str, **fields: Any) -> Any: ...  # noqa: D102

    def warning(self, event: str, **fields: Any) -> Any: ...  # noqa: D102

    def error(self, event: str, **fields: Any) -> Any: ...  # noqa: D102


class LineSink:
    """Writes finished lines to a descriptor, those of two milliseconds together.

    (A write a line was 35 of 470 µs of CPU a delivery.)  Whoever kills the process loses these lines.

    A reader that is slow, stuck or gone must not stop deliveries: a pipe is written to only while it has
    room, the rest waits in memory, and beyond `limit` bytes lines are left out and counted.  As soon as
    there is room again, a line tells how many are missing.

    `written` and `lost` are how many lines left the process since the start, and how many never will.
    """

    def __init__(self, descriptor: int, limit: int = 16 * 1024**2) -> None:
        self.written = 0
        self.lost = 0
        self._descriptor = descriptor
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._size = 0
        self._in_rest = 0
        self._left_out = 0
        self._torn = False
        self._failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._scheduled = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gather lines in the turns of this loop from now on."""
        self._loop = loop

    def msg(self, line: bytes) -> None:
        """Take one finished line, without its newline."""
        if self._size > self._limit:
            self._left_out += 1
            self.lost += 1
            return
        self._lines.append(line)
        self._size += len(line) + 1
        if self._loop is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_later(GATHER, self.flush)

    debug = info = warning = error = msg

    def flush(self) -> None:
        """Write as much as there is room for; the rest is tried again in a while."""
        self._scheduled = False
        while (self._rest or self._lines) and self._room.poll(0):
            self._rest = self._rest or self._next_lines()
            try:
                # A pipe with room is sure to take this much at once, and whole (POSIX).
                written = os.write(self._descriptor, self._rest[: select.PIPE_BUF])
            except BlockingIOError:
                break
            except OSError as error:
                self._lose(error)
                return
            self._torn = not self._rest[:written].endswith(b"\n")
            self._rest = self._rest[written:]
            self._size -= written
            if not self._rest:
                self.written += self._in_rest
            if self._left_out and not self._rest and not self._lines:
                self._tell_left_out()
        if (self._rest or self._lines) and self._loop is not None:
            self._scheduled = True
            self._loop.call_later(RETRY_AFTER, self.flush)

    def close(self, seconds: float) -> None:
        """Write what is left, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        while (self._rest or self._lines) and time.monotonic() < deadline:
            self._room.poll(100)
            self.flush()

    def _next_lines(self) -> bytes:
        """Take whole lines off, as many as are written at once."""
        lines = [self._lines.popleft()]
        if self._torn:  # the disk was full in the middle of a line: that one ends here
            lines[0] = b"\n" + lines[0]
            self._size += 1
        size = len(lines[0]) + 1
        while self._lines and size + len(self._lines[0]) < select.PIPE_BUF:
            size += len(self._lines[0]) + 1
            lines.append(self._lines.popleft())
        self._in_rest = len(lines)
        return b"\n".join([*lines, b""])

    def _lose(self, error: OSError) -> None:
        """Give up what cannot be written: the disk is full, or the reader is gone."""
        unwritten = self._rest.removeprefix(b"\n").count(b"\n")
        self.written += self._in_rest - unwritten if self._rest else 0
        self._left_out += unwritten + len(self._lines)
        self.lost += unwritten + len(self._lines)
        self._failure = error.strerror or type(error).__name__
        self._rest = b""
        self._lines.clear()
        self._size = 0

    def _tell_left_out(self) -> None:
        fields = {"event": "log.gap", "lines": self._left_out, "error": self._failure or "no room"}
        self._left_out, self._failure = 0, ""
        self.msg(_render_json(None, "", _stamp(None, "warning", fields)))


@lru_cache(maxsize=2)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _timestamp(unix: float) -> str:
    """Return RFC 3339 text with microseconds; all lines of a second share most of it."""
    whole = int(unix)
    return f"{_second(whole)}.{int((unix - whole) * 1e6):06}Z"


def _stamp(_: Any, level: str, fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        "timestamp": _timestamp(time.time()),
        "level": level,
        "message": fields.pop("event"),
        "service": SERVICE,
        "version": __version__,
        **fields,
    }


def _render_json(_: Any, __: str, fields: MutableMapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, default=str)
    except TypeError:
        # A text with half a character, such as a file's name that is no UTF-8, or a huge number.
        return orjson.dumps(_sound(fields), default=str)


def _sound(value: Any) -> Any:
    """Return a value that JSON can hold: characters that are no UTF-8 as their codes, huge numbers as texts."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_sound(str(key)): _sound(one) for key, one in value.items()}
        case list() | tuple():
            return [_sound(one) for one in value]
        case int() if not -(2**63) <= value < 2**64:
            return str(value)
        case _:
            return value


def _render_console(_: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    clock = fields.pop("timestamp")[11:23]
    name = fields.pop("message")
    del fields["level"], fields["service"], fields["version"]
    told = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{clock} {level:7} {name:24} {told}".encode(errors="backslashreplace")


class AttemptLines(Protocol):
    """Writes lines of attempts, whose members are rendered already; the hot path's way around structlog.

    (A line of 16 fields costs 7 of 58 us of a bare request by structlog, and 2 so.)  It is also the way
    around every bound on what flaps: an attempt's line is never left out.
    """

    def __call__(self, message: str, members: bytes) -> None:
        """Write a line; `members` are JSON members without braces."""


_ATTEMPTS = {"attempt.succeeded": "info", "attempt.failed": "warning"}
"""The kinds that come this way, with their levels."""


def attempt_lines(level: str, form: str, sink: LineSink, log: Log) -> AttemptLines:
    """Return the writer for a level and a form."""
    if form != "json":
        return attempts_by(log)
    heads = {
        message: (
            f'","level":"{its}","message":"{message}",'
            f'"service":"{SERVICE}","version":"{__version__}",'
        ).encode()
        for message, its in _ATTEMPTS.items()
        if is_told(its, level)
    }

    def as_json(message: str, members: bytes) -> None:
        head = heads.get(message)
        if head is not None:
            sink.msg(b'{"timestamp":"%b%b%b}' % (_timestamp(time.time()).encode(), head, members))

    return as_json


def attempts_by(log: Log) -> AttemptLines:
    """Return a writer that gives its lines to a log, as fields."""

    def by_log(message: str, members: bytes) -> None:
        getattr(log, _ATTEMPTS[message])(message, **orjson.loads(b"{%b}" % members))

    return by_log


def is_told(level: str, least: str) -> bool:
    """Tell whether lines of a level are written where `least` is the log's."""
    names = logging.getLevelNamesMapping()
    return names[level.upper()] >= names[least.upper()]


def quiet_libraries() -> None:
    """Keep the libraries' own logging from standard error: what matters of it is told in our words."""
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    for library in ("aiormq", "aio_pika", "aiohttp", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def configure(level: str, form: str, sink: LineSink) -> Log:
    """Return the program's log; `level` is a name of `logging`, `form` is `json` or `console`."""
    quiet_libraries()
    render = _render_json if form == "json" else _render_console
    log: Log = structlog.wrap_logger(
        sink,
        processors=[_stamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(level.upper()),
        cache_logger_on_first_use=True,
    ).bind()
    return log


def rfc3339(unix: float) -> str:
    """Return Unix seconds as RFC 3339 text in UTC, with milliseconds."""
    return (
        datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
