"""What the dispatcher's JSON log lines add up to, by subscription and target, and over time.  Pure.

Bounded: what is kept grows neither with the number of lines nor, beyond `MOST` targets, with what they
name.  A line that is none of the dispatcher's changes nothing but the count of such lines.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.commands.histogram import Histogram
from service.commands.series import Series

PERCENTILES: Final = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
"""Which percentiles are told: their names, and the share of all attempts."""

MOST: Final = 10_000
"""How many targets, and subscriptions with dead letters, are told apart; the rest is one row."""
OTHERS: Final = "(others)"
"""The subscription and the target of that row; no subscription's id can be this."""

_SERVICE: Final = "webhook-dispatcher"
_LONGEST_NAME: Final = 2048
_LONGEST_ERROR: Final = 500
_LONGEST_REASON: Final = 64
_MOST_REASONS: Final = 20
_TIMESTAMP: Final = len("2030-01-31T12:00:00.000001Z")
_SECONDS: Final = len("2030-01-31T12:00:00")


@dataclass(slots=True)
class Tally:
    """What happened at one target, or (the sum of them) in one subscription."""

    attempts: int = 0
    succeeded: int = 0
    durations: Histogram = field(default_factory=Histogram)
    retries: int = 0
    failovers: int = 0
    ejections: int = 0
    last_error: str | None = None
    last_error_at: str = ""

    def attempt(self, milliseconds: float, decision: str, error: str | None, at: str) -> None:
        """Count an attempt; `error` is None for one that succeeded, `at` the time as it stands in the line."""
        self.durations.add(milliseconds)
        self.attempts += 1
        self.succeeded += error is None
        self.retries += decision == "retry"
        self.failovers += decision == "failover"
        # Lines of several processes may come one process after another: the time decides.
        if error is not None and at >= self.last_error_at:
            self.last_error, self.last_error_at = error, at

    def add(self, other: "Tally") -> None:
        """Add another's counts to this one's."""
        self.attempts += other.attempts
        self.succeeded += other.succeeded
        self.durations.merge(other.durations)
        self.retries += other.retries
        self.failovers += other.failovers
        self.ejections += other.ejections
        if other.last_error is not None and other.last_error_at >= self.last_error_at:
            self.last_error, self.last_error_at = other.last_error, other.last_error_at

    def percentiles(self) -> list[float | None]:
        """Return the durations of `PERCENTILES`, in milliseconds."""
        return self.durations.percentiles([share for _, share in PERCENTILES])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a target, or with `target` None the whole of a subscription.

    `dead_letters` counts by reason; it is None for a target, since a delivery dies at all of them.
    """

    subscription_id: str
    target: str | None
    tally: Tally
    dead_letters: Counter[str] | None

    def told(self) -> dict[str, Any]:
        """Return the row as JSON values; durations in milliseconds."""
        tally, dead, took = self.tally, self.dead_letters, self.tally.percentiles()
        return {
            "subscription_id": self.subscription_id,
            "target": self.target,
            "attempts": tally.attempts,
            "succeeded": tally.succeeded,
            "success_rate": round(tally.succeeded / tally.attempts, 6) if tally.attempts else None,
            **{name: _rounded(value) for (name, _), value in zip(PERCENTILES, took, strict=True)},
            "retries": tally.retries,
            "failovers": tally.failovers,
            "ejections": tally.ejections,
            "dead_letters": None if dead is None else dead.total(),
            "dead_letter_reasons": None if dead is None else dict(dead),
            "last_error": tally.last_error,
            "last_error_at": tally.last_error_at or None,
        }


class Statistics:
    """What log lines tell, line by line.

    `used`, `other` (ours, but none of the kinds that are counted) and `skipped` (no JSON, or not ours)
    add up to the lines taken.  `missing` are lines that the dispatcher says it could not write; `as_of`
    is the latest time of a line that was counted.
    """

    def __init__(self, *, over_time: bool = False) -> None:
        self.used = 0
        self.other = 0
        self.skipped = 0
        self.missing = 0
        self.as_of = ""
        self.series = Series() if over_time else None
        self._targets: dict[tuple[str, str], Tally] = {}
        self._dead: dict[str, Counter[str]] = {}
        self._text, self._second = "", 0  # lines of the same second come together

    @property
    def lines(self) -> int:
        """How many lines were taken."""
        return self.used + self.other + self.skipped

    def take(self, lines: Iterable[bytes]) -> None:
        """Take lines; what stands before the JSON object (a pod's or a container's name) is passed over."""
        for line in lines:
            try:
                told = orjson.loads(line if line[:1] == b"{" else line[line.index(b"{") :])
                if told["service"] != _SERVICE:
                    self.skipped += 1
                elif self._count(told):
                    self.used += 1
                else:
                    self.other += 1
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self.skipped += 1

    def rows(self) -> Iterator[Row]:
        """Yield for each subscription, by id, its sum and then its targets."""
        targets: dict[str, list[tuple[str, Tally]]] = {name: [] for name in self._dead}
        for (subscription, target), tally in sorted(
            self._targets.items(), key=lambda item: item[0]
        ):
            targets.setdefault(subscription, []).append((target, tally))
        for subscription, tallies in sorted(targets.items()):
            dead = self._dead.get(subscription, Counter())
            yield Row(subscription, None, _sum([tally for _, tally in tallies]), dead)
            yield from (Row(subscription, target, tally, None) for target, tally in tallies)

    def _count(self, told: dict[str, Any]) -> bool:
        """Count the line, if it is of a kind that is counted; what is wrong with it shows before."""
        at = told["timestamp"][:_TIMESTAMP]
        if (text := at[:_SECONDS]) != self._text:
            self._text, self._second = text, unix_second(text)
        match told["message"]:
            case "attempt.succeeded":
                self._attempt(told, None, at)
            case "attempt.failed":
                self._attempt(told, str(told["error"])[:_LONGEST_ERROR], at)
            case "target.ejected":
                self._at(told).ejections += 1
            case "delivery.dead_lettered":
                self._bury(str(told["subscription_id"]), str(told["reason"]))
            case "log.gap":
                self.missing += int(told["lines"])
            case _:
                return False
        self.as_of = max(self.as_of, at)
        return True

    def _attempt(self, told: dict[str, Any], error: str | None, at: str) -> None:
        milliseconds, decision = told["duration_ms"] + 0.0, told["decision"]
        self._at(told).attempt(milliseconds, decision, error, at)
        if self.series is not None:
            self.series.add(self._second, milliseconds, succeeded=error is None)

    def _at(self, told: dict[str, Any]) -> Tally:
        key = told["subscription_id"], told["target"]
        return self._targets.get(key) or self._open(*key)

    def _open(self, subscription: Any, target: Any) -> Tally:
        key = str(subscription)[:_LONGEST_NAME], str(target)[:_LONGEST_NAME]
        if len(self._targets) >= MOST and key not in self._targets:
            key = OTHERS, OTHERS
        return self._targets.setdefault(key, Tally())

    def _bury(self, subscription: str, reason: str) -> None:
        subscription, reason = subscription[:_LONGEST_NAME], reason[:_LONGEST_REASON]
        if len(self._dead) >= MOST and subscription not in self._dead:
            subscription = OTHERS
        reasons = self._dead.setdefault(subscription, Counter())
        reasons[reason if reason in reasons or len(reasons) < _MOST_REASONS else OTHERS] += 1


def _sum(tallies: list[Tally]) -> Tally:
    if len(tallies) == 1:  # as with most subscriptions: no need for a copy
        return tallies[0]
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole


def unix_second(text: str) -> int:
    """Return the Unix second of RFC 3339 text in UTC, without its fraction; ValueError for other text."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
