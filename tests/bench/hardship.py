"""What healthy subscriptions get while others are sick, as values and as two tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

SUBSCRIBERS: Final = 10
LOAD: Final = 0.5
NOBODY: Final = "nobody"
"""Nobody falls sick: what the figures waver by on this machine."""
BACKLOG: Final = "backlog"
"""So many deliveries were put off while the sick ones refused; now these take everything."""

TITLES: Final = {
    NOBODY: "none of them",
    "hang": "hang for 30 s",
    "refuse": "refuse connections",
    "fail": "answer 500",
    "slow": "answer after 5 s",
    "throttle": "throttle to 5/s",
    BACKLOG: "have a backlog",
}


@dataclass(frozen=True, slots=True)
class Hardship:
    """So many are sick in one way.

    `throughput`, `p99` and `calm_p99` are those of the well ones as a share of before; `first_…` the same
    for the first seconds.  `taken` is what the sick ones took a second, all together.  `waited` and
    `before_waited` are the share of the time in which the dispatcher had work but no core to do it on.
    """

    way: str
    sick: int
    load: float
    samples: int
    before_p99_ms: float
    before_waited: float
    throughput: float
    p99: float
    calm_p99: float
    first_throughput: float
    first_p99: float
    taken: float
    waited: float


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The end of one way: memory in MiB, what was put off and how often, and how long recovery took.

    `publishes` and `most_publishes` are those of a delivery that was put off, in the minute from the first
    of them on; `full_weight` in seconds, None where it did not come in two minutes.
    """

    way: str
    memory_before: float
    memory_after: float
    put_off: int
    publishes: float
    most_publishes: int
    doubled: int
    full_weight: float | None


@dataclass(slots=True)
class Isolation:
    """All of it; `load` in events a second, `capacity` 0 where it was not measured."""

    load: float
    capacity: float = 0.0
    rows: list[Hardship] = field(default_factory=list)
    ends: list[Aftermath] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    @property
    def title(self) -> str:
        """Return what the tables are about, and what they lack."""
        about = (
            f"Isolation: {SUBSCRIBERS} subscriptions, one target each, an event has one subscriber;"
            f" load {self.load:,.0f} events a second"
        )
        if self.capacity:
            about += f", {LOAD:.0%} of what it can do"
        return "; ".join((about, *self.missed))

    def json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


_HEADINGS: Final = (
    *("sick", "", "healthy: samples", "p99 before", "throughput", "p99"),
    *("median second's", "first 3 s: throughput", "p99", "sick take", "no core: before", "then"),
)
_END_HEADINGS: Final = (
    *("sick", "memory before", "after", "put off", "publishes each", "at most", "doubled"),
    "full weight after",
)


def tables(found: Isolation) -> list[list[Sequence[str]]]:
    """Return the two tables, headings first."""
    return [
        [_HEADINGS, *(row(one) for one in found.rows)],
        [_END_HEADINGS, *(_end(one) for one in found.ends)],
    ]


def row(one: Hardship) -> Sequence[str]:
    """Return a row of the first table."""
    return (
        TITLES[one.way],
        str(one.sick),
        f"{one.samples:,}",
        f"{one.before_p99_ms:.1f} ms",
        f"{one.throughput:.1%}",
        f"{one.p99:.2f} x",
        f"{one.calm_p99:.2f} x",
        f"{one.first_throughput:.1%}",
        f"{one.first_p99:.2f} x",
        f"{one.taken:.1f}/s",
        f"{one.before_waited:.0%}",
        f"{one.waited:.0%}",
    )


def _end(one: Aftermath) -> Sequence[str]:
    return (
        TITLES[one.way],
        f"{one.memory_before:.0f} MiB",
        f"{one.memory_after:.0f} MiB",
        f"{one.put_off:,}",
        f"{one.publishes:.2f}",
        str(one.most_publishes),
        str(one.doubled),
        "not in 2 min" if one.full_weight is None else f"{one.full_weight:.0f} s",
    )
