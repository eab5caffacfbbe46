"""Attempts and durations over time, drawn in text: a panel each, one above the other.  Pure.

A panel is a bar for each column of time; where the encoding has no block characters, ASCII stands for
them.  Every panel begins at 0, and its highest bar is labelled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from service.commands.series import Columns, Series, Slot

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
ASCII: Final = " .:#"
"""From an empty character to a full one, in equal steps."""
LEAST_WIDTH: Final = 40

_NAME: Final = 10
_NUMBER: Final = 7
_LABEL: Final = _NAME + _NUMBER + 2


@dataclass(frozen=True, slots=True)
class _Panel:
    name: str
    values: list[float]


def plot(series: Series, width: int, height: int, marks: str) -> list[str]:
    """Return the lines of the plot, `height` of them to a panel; none where nothing happened."""
    columns = series.columns(max(width, LEAST_WIDTH) - _LABEL)
    if columns is None:
        return []
    lines = [line for panel in _panels(columns) for line in _drawn(panel, height, marks)]
    return [*lines, *_axis(columns)]


def panel_height(height: int) -> int:
    """Return how many lines a panel has, when the plot and a table share so many."""
    return min(max((height // 2 - 2) // 4, 1), 5)


def _panels(columns: Columns) -> list[_Panel]:
    def values(of: Callable[[Slot], float]) -> list[float]:
        return [0.0 if slot is None else of(slot) for slot in columns.slots]

    took = [(0.0, 0.0) if slot is None else _took(slot) for slot in columns.slots]
    return [
        _Panel("attempts/s", values(lambda slot: slot.attempts / columns.seconds)),
        _Panel("failed/s", values(lambda slot: slot.failed / columns.seconds)),
        _Panel("p50 ms", [p50 for p50, _ in took]),
        _Panel("p99 ms", [p99 for _, p99 in took]),
    ]


def _took(slot: Slot) -> tuple[float, float]:
    p50, p99 = slot.durations.percentiles((0.5, 0.99))
    return p50 or 0.0, p99 or 0.0


def _drawn(panel: _Panel, height: int, marks: str) -> Iterator[str]:
    """Yield the panel's lines from the top."""
    top = max(panel.values)
    full = len(marks) - 1
    # What is not 0 is seen, however small.
    bars = [-(-value * height * full // top) if top else 0 for value in panel.values]
    for row in reversed(range(height)):
        name, number = (panel.name, _number(top)) if row == height - 1 else ("", "")
        bar = "".join(marks[int(min(max(steps - row * full, 0), full))] for steps in bars)
        yield f"{name:<{_NAME}}{number:>{_NUMBER}} |{bar}".rstrip()


def _axis(columns: Columns) -> Sequence[str]:
    """Return the line at the bottom, and what it spans."""
    first, last = (datetime.fromtimestamp(at, UTC) for at in (columns.first, columns.last))
    told = f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    return (
        " " * (_LABEL - 1) + "+" + "-" * len(columns.slots),
        f"{told}; one column: {_length(columns.seconds)}",
    )


def _length(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds} s"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"
