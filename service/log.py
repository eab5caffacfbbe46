"""The set-up of structlog: one JSON object a line on standard output, or text for people.

What a line may say is the law of `service.catalogue`.
"""

import asyncio
import logging
import os
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
import structlog

from service import __version__
from service.catalogue import SERVICE


class Log(Protocol):
    """What stages and shells know of logging: a level, an event name, fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...  # noqa: D102 - one method a level

    def info(self, event: str, **fields: Any) -> Any: ...  # noqa: D102

    def warning(self, event: str, **fields: Any) -> Any: ...  # noqa: D102

    def error(self, event: str, **fields: Any) -> Any: ...  # noqa: D102


class LineSink:
    """Collects finished lines and writes those of one turn of the event loop with one system call.

    Nothing stays behind: a line is written before the loop waits again, and at `flush`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Batch by the turns of this loop from now on."""
        self._loop = loop

    def msg(self, line: bytes) -> None:
        """Take one finished line, without its newline."""
        if not self._lines and self._loop is not None:
            self._loop.call_soon(self.flush)
        self._lines.append(line)
        if self._loop is None:
            self.flush()

    debug = info = warning = error = msg

    def flush(self) -> None:
        """Write everything that was collected."""
        if not self._lines:
            return
        block = memoryview(b"\n".join([*self._lines, b""]))
        self._lines.clear()
        while block:
            block = block[os.write(self._descriptor, block) :]


def _stamp(_: Any, level: str, fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": level,
        "message": fields.pop("event"),
        "service": SERVICE,
        "version": __version__,
        **fields,
    }


def _render_json(_: Any, __: str, fields: MutableMapping[str, Any]) -> bytes:
    return orjson.dumps(fields, default=str)


def _render_console(_: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    clock = fields.pop("timestamp")[11:23]
    name = fields.pop("message")
    del fields["level"], fields["service"], fields["version"]
    told = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{clock} {level:7} {name:24} {told}".encode(errors="backslashreplace")


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
