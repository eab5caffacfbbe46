"""The command `stats`: a table, and a plot, out of the dispatcher's JSON log lines.

Reads as a stream, so that a log of any length takes no more memory than a short one; what the lines
add up to is `service.commands.tally`.
"""

import io
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from service.commands.inlet import Inlet, Signals, Splitter
from service.commands.live import InPlace, Never, Turns, is_terminal, size
from service.commands.output import drop_output
from service.commands.plot import ASCII, BLOCKS, panel_height, plot
from service.commands.table import counts, fitting, footer, shortened, table
from service.commands.tally import Statistics
from service.errors import ReaderGone

WIDTH: Final = 120
"""Columns of what is no terminal."""
PANEL_HEIGHT: Final = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; `follow` in seconds between two showings, None: at the end alone."""

    as_json: bool = False
    plot: bool = False
    follow: float | None = None


def print_stats(descriptor: int, wish: Wish) -> None:
    """Read log lines to the end (or to SIGINT or SIGTERM) and print what they tell on standard output.

    A table, or as JSON one object a line.  A reader that goes away ends it quietly.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what the encoding lacks is shown as "?"
    statistics = Statistics(over_time=wish.plot)
    in_place = wish.follow is not None and not wish.as_json and is_terminal()
    try:
        with Signals(InPlace.SIGNALS if in_place else ()) as signals:
            output = None if wish.follow is None else sys.stdout.fileno()
            _take(Inlet(descriptor, signals, output), statistics, wish, signals, in_place=in_place)
        _write(statistics, wish)
        sys.stdout.flush()
    except ReaderGone:
        drop_output()


def _take(
    inlet: Inlet, statistics: Statistics, wish: Wish, signals: Signals, *, in_place: bool
) -> None:
    splitter = Splitter()
    with ExitStack() as stack:
        turns: Turns
        if wish.follow is None:
            turns = Never()
        elif in_place:
            frame = InPlace(wish.follow, signals, lambda: _frame(statistics))
            turns = stack.enter_context(frame)
        else:
            turns = Turns(wish.follow, lambda: _show(statistics, wish))
        turns.turn(0)
        while (block := inlet.read(turns.wait(statistics.lines))) != b"":
            statistics.take(splitter.feed(block or b""))
            turns.turn(statistics.lines)
        statistics.take(splitter.end())


def _frame(statistics: Statistics) -> list[str]:
    """Return what a terminal shows, no wider and no longer than it is."""
    columns, lines = size()
    width = columns - 1  # what is written into the last column sticks there
    drawn = _plotted(statistics, width, panel_height(lines))
    listed = fitting(list(statistics.rows()), width, max(2, lines - len(drawn) - 2))
    told = counts(statistics) if statistics.lines else "Waiting for lines; Ctrl-C ends."
    return [line[:width] for line in (*listed, *drawn, "", shortened(told, width))][-lines:]


def _show(statistics: Statistics, wish: Wish) -> None:
    """Print one of several showings."""
    _print(statistics, wish)
    if not wish.as_json:
        sys.stdout.write("\n")
    sys.stdout.flush()


def _write(statistics: Statistics, wish: Wish) -> None:
    """Print the last showing, and how far it is to be believed."""
    found = _print(statistics, wish)
    told = footer(statistics, found=found)
    print(told, file=sys.stderr if wish.as_json else sys.stdout)


def _print(statistics: Statistics, wish: Wish) -> bool:
    """Print the rows, and say whether there are any."""
    rows = list(statistics.rows())
    width = size().columns if is_terminal() else WIDTH
    if wish.as_json:
        for row in rows:
            told = {**row.told(), "as_of": statistics.as_of}
            # In ASCII, for a terminal would obey some control characters that JSON lets stand.
            sys.stdout.write(json.dumps(told, separators=(",", ":")) + "\n")
    elif rows:
        listed = (*table(rows, width), *_plotted(statistics, width, PANEL_HEIGHT))
        sys.stdout.writelines(f"{line}\n" for line in listed)
    return bool(rows)


def _plotted(statistics: Statistics, width: int, height: int) -> list[str]:
    if statistics.series is None:
        return []
    drawn = plot(statistics.series, width, height, _marks())
    return ["", *drawn] if drawn else []


def _marks() -> str:
    try:
        BLOCKS.encode(sys.stdout.encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS
