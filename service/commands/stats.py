"""The command `stats`: a table out of the dispatcher's JSON log lines.

Reads as a stream, so that a log of any length takes no more memory than a short one; what the lines
add up to is `service.commands.tally`.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

import orjson

from service.commands.tally import PERCENTILES, Row, Statistics

WIDTH: Final = 120
LINE_LIMIT: Final = 1 << 20
"""Bytes; the dispatcher writes no such line, and a longer one is passed over without being kept."""

_GAP: Final = "  "
_COLUMNS: Final = (
    *("attempts", "success", "p50 ms", "p95 ms", "p99 ms"),
    *("retries", "failovers", "ejected", "dead"),
)


def table(rows: Iterable[Row], width: int = WIDTH) -> Iterator[str]:
    """Yield the lines of the table, none longer than `width`: targets are shortened in the middle."""
    listed = [(row, _cells(row)) for row in rows]
    widths = [
        max([len(name), *(len(cells[column]) for _, cells in listed)])
        for column, name in enumerate(_COLUMNS)
    ]
    room = max(20, width - sum(widths) - len(_GAP) * len(widths))
    first = min(room, max([len("subscription, target"), *(len(_name(row)) for row, _ in listed)]))
    yield _line("subscription, target", _COLUMNS, first, widths)
    for row, cells in listed:
        yield _line(_name(row), cells, first, widths)
        if row.target is not None and row.tally.last_error is not None:
            at = row.tally.last_error_at[:19]
            yield _shortened(f"    last error {at}: {row.tally.last_error}", width)


def print_stats(stream: BinaryIO, *, as_json: bool) -> None:
    """Read log lines to the end (or to Ctrl-C) and print what they tell on standard output.

    A table, or with `as_json` one object a line.  A reader that goes away ends it quietly.
    """
    statistics = Statistics()
    try:
        for line in _lines(stream):
            if line is None:
                statistics.skip()
            else:
                statistics.take(line)
    except KeyboardInterrupt:
        pass  # somebody watched a running log, and wants to see what there is so far
    try:
        _write(statistics, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and must find something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield each line, None for one that is longer than the limit."""
    while line := stream.readline(LINE_LIMIT):
        if len(line) < LINE_LIMIT or line.endswith(b"\n"):
            yield line
            continue
        while len(line) == LINE_LIMIT and not line.endswith(b"\n"):
            line = stream.readline(LINE_LIMIT)
        yield None


def _write(statistics: Statistics, *, as_json: bool) -> None:
    rows = list(statistics.rows())
    if as_json:
        for row in rows:
            sys.stdout.write(orjson.dumps(row.told()).decode() + "\n")
    elif rows:
        sys.stdout.writelines(f"{line}\n" for line in table(rows))
    print(_footer(statistics, found=bool(rows)), file=sys.stderr if as_json else sys.stdout)


def _footer(statistics: Statistics, *, found: bool) -> str:
    if not statistics.lines:
        return "No lines: pipe the dispatcher's JSON log into this command."
    counts = (
        f"{statistics.lines:,} lines: {statistics.used:,} counted,"
        f" {statistics.other:,} of other kinds, {statistics.skipped:,} skipped (not the dispatcher's JSON)."
    )
    if not found:
        return f"No attempts, ejections or dead letters in {counts}"
    return f"{counts}\nPercentiles are within 1 %."


def _cells(row: Row) -> list[str]:
    tally = row.tally
    rate = f"{_floored(100 * tally.succeeded / tally.attempts)}%" if tally.attempts else "-"
    dead = "" if row.dead_letters is None else str(row.dead_letters.total())
    counts = (tally.retries, tally.failovers, tally.ejections)
    return [
        str(tally.attempts),
        rate,
        *(_duration(tally.durations.percentile(share)) for _, share in PERCENTILES),
        *(str(count) for count in counts),
        dead,
    ]


def _floored(percent: float) -> str:
    # Rounded down: 100 % is said only where nothing failed.
    return f"{math.floor(percent * 100) / 100:.2f}"


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def _name(row: Row) -> str:
    return row.subscription_id if row.target is None else f"  {row.target}"


def _line(name: str, cells: Iterable[str], first: int, widths: list[int]) -> str:
    aligned = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return _GAP.join((_shortened(name, first).ljust(first), *aligned)).rstrip()


def _shortened(text: str, width: int) -> str:
    """Return the text with its middle left out where it is too long; on one line in any case."""
    text = "".join(mark if mark.isprintable() else " " for mark in text)
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:]}"
