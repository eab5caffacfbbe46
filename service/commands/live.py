"""Showing what has been found so far, in turns: in place on a terminal, or one showing after another.

A turn comes when there is something new, at most once an interval, and takes no more than a tenth of the
time, however much there is to show.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from service.commands.inlet import Signals

_SHARE: Final = 9
"""How much longer than a showing took the pause after it is, at least."""

# The other screen of the terminal, from which people come back to what stood there before; without a
# cursor, and without breaking lines that are wider than it seemed.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def is_terminal() -> bool:
    """Say whether standard output is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def size() -> os.terminal_size:
    """Return the columns and lines of the terminal; of one that does not tell, the usual ones."""
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    return os.terminal_size((columns or 80, lines or 24))


class Turns:
    """When to show something, and that it is shown."""

    def __init__(self, interval: float, show: Callable[[], None]) -> None:
        self._interval = interval
        self._show = show
        self._shown = 0
        self._due = time.monotonic() + interval

    def wait(self, lines: int) -> float | None:
        """Return for how many seconds nothing has to be done after so many lines; None: until more come."""
        return None if lines == self._shown else max(0.0, self._due - time.monotonic())

    def turn(self, lines: int) -> None:
        """Show what there is after so many lines, if it is time."""
        began = time.monotonic()
        if lines == self._shown or began < self._due:
            return
        self._show()
        self._shown = lines
        ended = time.monotonic()
        self._due = ended + max(self._interval, _SHARE * (ended - began))


class Never(Turns):
    """Nothing is shown before the end."""

    def __init__(self) -> None:
        super().__init__(math.inf, lambda: None)

    def wait(self, _: int) -> None:
        """Wait for more lines."""


class InPlace(Turns):
    """The terminal: each showing takes the place of the one before.

    It is left as it was: at the end, and while Ctrl-Z suspends the command.
    """

    SIGNALS: Final = (signal.SIGTSTP, signal.SIGWINCH)

    def __init__(self, interval: float, signals: Signals, frame: Callable[[], list[str]]) -> None:
        super().__init__(interval, lambda: self._draw(frame()))
        self._signals = signals
        self._again()

    def __enter__(self) -> Self:
        _write(_ENTER)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        _write(_LEAVE)

    def turn(self, lines: int) -> None:
        """Show what there is, if it is time, or if the window is another."""
        if self._signals.take(signal.SIGTSTP):
            _write(_LEAVE)
            signal.raise_signal(signal.SIGSTOP)
            _write(_ENTER)  # somebody wants to see it again
            self._again()
        if self._signals.take(signal.SIGWINCH):
            self._again()
        super().turn(lines)

    def _again(self) -> None:
        self._shown, self._due = -1, time.monotonic()

    def _draw(self, frame: list[str]) -> None:
        body = "\r\n".join(f"{_CLEAR_LINE}{line}" for line in frame)
        _write(f"{_HOME}{body}{_CLEAR_BELOW}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
