"""The figures as a table in Markdown, and what went wrong below it."""

from collections.abc import Sequence

from tests.faults.ledger import Place
from tests.faults.play import Row

_HEADINGS = (
    *("RabbitMQ", "what was done", "times", "events", "owed", "delivered", "dead", "rejected"),
    *("waiting", "unrouted", "destroyed", "lost", "doubled", "at most"),
)
_TEXTS = 2


def table(rows: Sequence[Row]) -> str:
    """Return the table; its columns line up for people too."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    rule = [
        "-" * width if n < _TEXTS else "-" * (width - 1) + ":" for n, width in enumerate(widths)
    ]
    shown = [_line(line, widths) for line in lines]
    return "\n".join([shown[0], _line(rule, widths), *shown[1:]])


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong, a line each."""
    found = []
    for row in rows:
        told = row.account
        where = f"{row.scenario} on {row.broker}"
        if told.lost:
            missing = ", ".join("/".join(debt) for debt in told.missing[:5])
            found.append(f"{where}: {told.lost} lost: {missing}")
        if not told.agrees:
            found.append(f"{where}: the sums do not agree: {told}")
        if told.strange:
            found.append(f"{where}: {told.strange} that nobody published, or with another body")
        if told.doubled > row.bound:
            found.append(f"{where}: {told.doubled} doubled, at most {row.bound} were in flight")
        found += [f"{where}: {problem}" for problem in row.problems]
    return found


def _cells(row: Row) -> tuple[str, ...]:
    told = row.account
    numbers = [row.times, told.events, told.owed, *(told.seen[place] for place in Place)]
    numbers += [told.destroyed, told.lost, told.doubled, row.bound]
    return (row.broker, row.what, *(f"{number:,}" for number in numbers))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if n < _TEXTS else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(padded)} |"
