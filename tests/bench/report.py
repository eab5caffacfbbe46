"""Rows, the table for people, JSON for programs, and the machine that they are from."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg
from pathlib import Path
from typing import Final

import orjson

from tests.bench.hardship import Isolation, tables

_LIBRARIES: Final = ("aio-pika", "aiormq", "aiohttp", "uvloop", "orjson")
_HEADINGS: Final = ("", "dispatcher", "bare loop", "ratio", "each pair", "bare loop is")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; `bare` is the same figure of the bare loop `beside`, `ratios` the pairs of turns.

    `name` is for programs and `title` for people.
    """

    name: str
    title: str
    unit: str
    value: float | None
    bare: float | None = None
    beside: str = ""
    ratios: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Return the median of the pairs."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(slots=True)
class Report:
    """All figures of one run."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    isolation: Isolation | None = None

    def add(self, rows: Sequence[Row]) -> None:
        """Take in more figures."""
        self.rows.extend(rows)

    def json(self) -> bytes:
        """Return the report as JSON."""
        rows = [asdict(row) | {"ratio": row.ratio} for row in self.rows]
        told = {"machine": self.machine, "rows": rows}
        if self.isolation is not None:
            told["isolation"] = self.isolation.json()
        return orjson.dumps(told, option=orjson.OPT_INDENT_2)

    def text(self) -> str:
        """Return the report as a table."""
        told = [f"{name}: {value}" for name, value in self.machine.items()]
        if self.rows:
            told += ["", *_table([_HEADINGS, *map(_cells, self.rows)])]
        if self.isolation is not None:
            told += ["", self.isolation.title]
            for rows in tables(self.isolation):
                told += ["", *_table(rows)]
        return "\n".join(told)


def machine(receiver: str, broker: str) -> dict[str, str]:
    """Return what the figures depend on, besides the program."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{_cpu_model()}, {cpu_count()} cores",
        "load at the start": " ".join(f"{load:.2f}" for load in getloadavg()),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        "broker": broker,
        "receiver": receiver,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _cells(row: Row) -> Sequence[str]:
    ratio = row.ratio
    return (
        row.title,
        _figure(row.value, row.unit),
        _figure(row.bare, row.unit),
        "" if ratio is None else f"{ratio:.2f}",
        " ".join(f"{one:.2f}" for one in row.ratios),
        row.beside,
    )


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place in {1, 2, 3} else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
