"""How the demo looks: plain text of at most 100 columns, coloured only on a terminal.

Without a terminal, or with NO_COLOR, not one escape sequence is written, and nothing waits for a reader.
"""

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Final

from service.commands.output import drop_output
from service.errors import ReaderGone

WIDTH: Final = 100
BLUE: Final = "36"
GREEN: Final = "32"
YELLOW: Final = "33"
RED: Final = "31"
BOLD: Final = "1"
DIM: Final = "2"

_READING: Final = 1.0
"""Seconds for which a person is left with a paragraph, on a terminal."""

_COLUMNS: Final = (17, 11, 5, 7, 7, 7, 14, 15)
_RIGHT: Final = frozenset((2, 3, 4, 5))
_TITLES: Final = (
    *("log line", "target", "round", "attempt", "status", "took"),
    *("decision", "receiver saw"),
)
_COLOURS: Final = {
    "attempt.succeeded": GREEN,
    "attempt.failed": YELLOW,
    "delivery.dead_lettered": RED,
    "event.rejected": RED,
}


class Screen:
    """Standard output, for a person."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._coloured = (
            self._is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )

    def line(self, text: str = "", colour: str = "") -> None:
        """Write one line (or several); a reader that went away is no reason to stop half-way."""
        if colour and self._coloured:
            text = f"\x1b[{colour}m{text}\x1b[0m"
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except ReaderGone:
            drop_output()

    def fact(self, name: str, text: str) -> None:
        """Write a name and what there is to say about it."""
        indent = 17
        first, *more = textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False) or [""]
        self.line(f"  {name:<{indent - 2}}{first}")
        for part in more:
            self.line(f"{'':{indent}}{part}")

    def title(self, text: str) -> None:
        """Begin a step."""
        self.line(f"\n{text}", BOLD)

    def tell(self, text: str) -> None:
        """Write a paragraph."""
        for part in textwrap.wrap(" ".join(text.split()), WIDTH - 3, break_on_hyphens=False):
            self.line(f"   {part}")

    def good(self, text: str) -> None:
        """Say what was seen to be so."""
        self._wrapped(f"=> {text}", GREEN)

    def json(self, text: str) -> None:
        """Show one JSON object as it is written, wrapped between its members."""
        parts = [""]
        for member in re.split(r'(?<=,)(?=")', text):
            if len(parts[-1]) + len(member) > WIDTH - 6:
                parts.append("")
            parts[-1] += member
        for part in parts:
            self.line(f"      {part}", DIM)

    def columns(self) -> None:
        """Write the titles of the columns of attempts."""
        self.line()
        self._row(_TITLES, DIM)

    def publishing(self, event_type: str, event_id: str) -> None:
        """Tell of an event on its way to the broker."""
        self.line(f"   {'(publish)':17}  {event_type}, id {event_id}", BLUE)

    def command(self, text: str, program: str = "webhook-dispatcher ") -> None:
        """Tell what is run, as it would be typed."""
        self.line(f"   $ {program}{text}", BLUE)

    def attempt(self, told: Mapping[str, Any], saw: str) -> None:
        """Show the telling fields of an attempt's log line, and what the receiver saw of it."""
        decision = told["decision"]
        if "in_s" in told:
            decision += f" in {told['in_s']:.1f} s"
        cells = (
            *(told["message"], target_name(told["target"]), told["round"], told["attempt"]),
            *(told.get("status") or told["error.type"], _took(told["duration_ms"])),
            *(decision, saw),
        )
        self._row(cells, _COLOURS[told["message"]])

    def event(self, told: Mapping[str, Any], fields: Iterable[str]) -> None:
        """Show another log line: its name and some of its fields."""
        shown = ", ".join(f"{name} {told[name]}" for name in fields if told.get(name) is not None)
        self._wrapped(f"{told['message']:17}  {shown}", _COLOURS.get(told["message"], ""), 19)

    def record(self, told: Mapping[str, Any]) -> None:
        """Show one object, a field a line."""
        for name, value in told.items():
            self._wrapped(f"   {name:18}{value}", DIM, 21)

    async def pause(self, seconds: float = _READING) -> None:
        """Give a person time to read; nobody else waits."""
        if self._is_terminal:
            await asyncio.sleep(seconds)

    def _wrapped(self, text: str, colour: str = "", hang: int = 3) -> None:
        parts = textwrap.wrap(
            text,
            WIDTH - 3,
            subsequent_indent=" " * hang,
            break_on_hyphens=False,
            drop_whitespace=True,
            replace_whitespace=False,
        )
        for part in parts:
            self.line(f"   {part}", colour)

    def _row(self, cells: Iterable[Any], colour: str) -> None:
        aligned = (
            f"{cell!s:>{width}}" if place in _RIGHT else f"{cell!s:<{width}}"
            for place, (cell, width) in enumerate(zip(cells, _COLUMNS, strict=True))
        )
        self.line(("   " + "  ".join(aligned)).rstrip(), colour)


def target_name(url: str) -> str:
    """Return the name of a receiver, which is the path of its URL."""
    return url.rpartition("/")[2]


def _took(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 99.95 else f"{milliseconds:.1f} ms"
