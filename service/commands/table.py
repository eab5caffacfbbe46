"""What `stats` found, as lines of text: the table and the counts under it.  Pure.

From 80 columns on no line is wider than asked for, and none holds a character that a terminal would obey.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from service.commands.tally import Row, Statistics
from service.commands.terminal import blanked

_FIRST: Final = "subscription, target"
_COLUMNS: Final = (
    *("attempts", "success", "p50 ms", "p95 ms", "p99 ms"),
    *("retries", "failovers", "ejected", "dead"),
)
_LEAST: Final = 20
"""How much of a subscription or a target is shown at least."""


def table(rows: Iterable[Row], width: int) -> Iterator[str]:
    """Yield the lines of the table: targets are shortened in the middle.

    In less than some 100 columns there is no room for failovers.
    """
    listed = [(row, _cells(row)) for row in rows]
    heads: tuple[str, ...] = _COLUMNS
    gap = "  "
    if width < _LEAST + sum(len(gap) + size for size in _widths(heads, listed)):
        heads, gap = tuple(name for name in heads if name != "failovers"), " "
    widths = _widths(heads, listed)
    room = max(_LEAST, width - sum(len(gap) + size for size in widths))
    first = min(room, max([len(_FIRST), *(len(_name(row)) for row, _ in listed)]))

    def line(name: str, cells: Mapping[str, str]) -> str:
        aligned = (cells[head].rjust(size) for head, size in zip(heads, widths, strict=True))
        return gap.join((shortened(name, first).ljust(first), *aligned)).rstrip()

    yield line(_FIRST, {head: head for head in heads})
    for row, cells in listed:
        yield line(_name(row), cells)
        if _has_error(row):
            tally = row.tally
            told = f"    last error {tally.last_error_at[:19]}: {tally.last_error}"
            yield shortened(told, width)


def fitting(rows: Sequence[Row], width: int, height: int) -> list[str]:
    """Return as much of the table as fits: without the targets, then without the subscriptions that do best."""
    if 1 + len(rows) + sum(map(_has_error, rows)) <= height:
        return list(table(rows, width))
    whole = [row for row in rows if row.target is None]
    worst = sorted(whole, key=_trouble, reverse=True)[: max(0, height - 2)]
    names = {row.subscription_id for row in worst}
    shown = [row for row in whole if row.subscription_id in names]
    left_out = f"({len(rows) - len(shown):,} rows more at the end, or in a larger window)"
    return [*table(shown, width), shortened(left_out, width)][:height]


def counts(statistics: Statistics) -> str:
    """Return how many lines there were, and what became of them."""
    told = (
        f"{statistics.lines:,} lines: {statistics.used:,} counted,"
        f" {statistics.other:,} of other kinds, {statistics.skipped:,} skipped (not the dispatcher's JSON)."
    )
    if statistics.missing:
        told += f" {statistics.missing:,} lines were never written (log.gap)."
    return told


def footer(statistics: Statistics, *, found: bool) -> str:
    """Return what stands under the table, or instead of one where there is nothing to show."""
    if not statistics.lines:
        return "No lines: pipe the dispatcher's JSON log into this command."
    if not found:
        return f"No attempts, ejections or dead letters in {counts(statistics)}"
    return f"{counts(statistics)}\nPercentiles are within 1 %."


def shortened(text: str, width: int) -> str:
    """Return the text with its middle left out where it is too long; on one line in any case."""
    text = blanked(text)
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:]}"


def _widths(heads: Iterable[str], listed: Sequence[tuple[Row, Mapping[str, str]]]) -> list[int]:
    return [max([len(head), *(len(cells[head]) for _, cells in listed)]) for head in heads]


def _cells(row: Row) -> Mapping[str, str]:
    tally = row.tally
    rate = f"{_floored(100 * tally.succeeded / tally.attempts)}%" if tally.attempts else "-"
    dead = "" if row.dead_letters is None else str(row.dead_letters.total())
    counted = (tally.retries, tally.failovers, tally.ejections)
    told = (
        *(str(tally.attempts), rate),
        *(_duration(value) for value in tally.percentiles()),
        *(str(number) for number in counted),
        dead,
    )
    return dict(zip(_COLUMNS, told, strict=True))


def _floored(percent: float) -> str:
    # Rounded down: 100 % is said only where nothing failed.
    return f"{math.floor(percent * 100) / 100:.2f}"


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def _name(row: Row) -> str:
    return row.subscription_id if row.target is None else f"  {row.target}"


def _trouble(row: Row) -> tuple[int, int]:
    """Return what puts a subscription before others: what went wrong, then how much there was."""
    tally, dead = row.tally, row.dead_letters or Counter()
    return tally.attempts - tally.succeeded + tally.ejections + dead.total(), tally.attempts


def _has_error(row: Row) -> bool:
    return row.target is not None and row.tally.last_error is not None
