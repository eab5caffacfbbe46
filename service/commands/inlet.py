"""What comes in: bytes as they come, cut into lines; and signals, noticed between two blocks of them.

Never waits for more than there is, so that a log that trickles is seen at once; keeps no more than the
start of one line.
"""

import math
import os
import select
import signal
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

from service.errors import ConfigurationError

LINE_LIMIT: Final = 1 << 20
"""Bytes; the dispatcher writes no such line, and a longer one is passed over without being kept."""

_BLOCK: Final = 1 << 18
_LONGEST_POLL: Final = (1 << 31) - 1
"""Milliseconds, 24 days: poll takes no more."""
_STOP: Final = (signal.SIGINT, signal.SIGTERM)


class Splitter:
    """Cuts blocks into lines, without their newlines; one that is too long becomes an empty one."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> list[bytes]:
        """Return the lines that end in this block."""
        *lines, rest = block.split(b"\n")
        if lines:
            self._keep(lines[0])
            lines[0] = self._take()
        self._keep(rest)
        return lines

    def end(self) -> list[bytes]:
        """Return the last line, if it has no newline."""
        return [self._take()] if self._size else []

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LINE_LIMIT:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> bytes:
        line = b"".join(self._parts) if self._size <= LINE_LIMIT else b""
        self._parts.clear()
        self._size = 0
        return line


class Signals:
    """Signals that came, to be looked at when there is time; `descriptor` becomes readable with each.

    SIGINT and SIGTERM ask to stop; when they come again they end the process at once, even while it
    waits for a reader that is stuck.
    """

    def __init__(self, others: Iterable[signal.Signals] = ()) -> None:
        self._numbers = (*_STOP, *others)
        self._came: set[int] = set()

    def __enter__(self) -> Self:
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._previous = {
            number: signal.signal(number, self._notice)
            for number in self._numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            if not self.stop or number not in _STOP:
                signal.signal(number, previous)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.descriptor)
        os.close(self._writing)

    @property
    def stop(self) -> bool:
        """Whether somebody asked to stop."""
        return not self._came.isdisjoint(_STOP)

    def take(self, number: signal.Signals) -> bool:
        """Say whether this signal came since it was asked last."""
        came = number in self._came
        self._came.discard(number)
        return came

    def _notice(self, number: int, _: Any) -> None:
        self._came.add(number)
        if number in _STOP:
            for stopping in _STOP:
                if stopping in self._previous:
                    signal.signal(stopping, signal.SIG_DFL)


class Inlet:
    """The bytes of a descriptor, to their end, or until there is no use in going on.

    That is when a signal says stop, or when nobody reads `output` any more.
    """

    def __init__(self, descriptor: int, signals: Signals, output: int | None = None) -> None:
        self._descriptor = descriptor
        self._signals = signals
        self._output = output
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(signals.descriptor, select.POLLIN)
        if output is not None:
            self._poll.register(output, 0)  # errors alone

    def read(self, seconds: float | None) -> bytes | None:
        """Return what there is; empty at the end, None where nothing came in time or a signal did."""
        timeout = None if seconds is None else min(math.ceil(1000 * seconds), _LONGEST_POLL)
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout)}
        if self._signals.descriptor in ready:
            os.read(self._signals.descriptor, 4096)
        if self._signals.stop or self._output in ready:
            return b""
        if self._descriptor not in ready:
            return None
        try:
            return os.read(self._descriptor, _BLOCK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConfigurationError(f"standard input cannot be read: {error.strerror}") from error
