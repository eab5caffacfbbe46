"""What the dispatcher's JSON log lines add up to, by subscription and target.  Pure.

Bounded: what is kept grows with the number of targets, never with the number of lines.  Durations go
into a histogram whose buckets grow by 2 %, so that a percentile is within 1 % of the true one.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

PERCENTILES: Final = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
"""Which percentiles are told: their names, and the share of all attempts."""

_SERVICE: Final = "webhook-dispatcher"
_OURS: Final = b'"webhook-dispatcher"'
_GROWTH: Final = 1.02
_LOG_GROWTH: Final = math.log(_GROWTH)
_SMALLEST_MS: Final = 0.001
_LARGEST_MS: Final = 1e9


class Histogram:
    """Counts of durations in milliseconds, in at most some 1,400 buckets."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()

    def add(self, milliseconds: float) -> None:
        """Count a duration; below a microsecond it counts as one."""
        bounded = min(max(milliseconds, _SMALLEST_MS), _LARGEST_MS)
        self.buckets[math.ceil(math.log(bounded) / _LOG_GROWTH)] += 1

    def percentile(self, share: float) -> float | None:
        """Return the duration that `share` (0..1) of all do not exceed, within 1 %; None without any."""
        rank = math.ceil(share * self.buckets.total())
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                # Halfway, as ratios go, between the ends of the bucket.
                return 2 * _GROWTH**bucket / (1 + _GROWTH)
        return None


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

    def attempt(self, told: dict[str, Any]) -> None:
        """Count an attempt's line; raises KeyError or TypeError for one of another make."""
        succeeded, decision = told["message"] == "attempt.succeeded", told["decision"]
        if not succeeded:
            self._remember(str(told["error"]), told["timestamp"])
        self.durations.add(told["duration_ms"])
        self.attempts += 1
        self.succeeded += succeeded
        self.retries += decision == "retry"
        self.failovers += decision == "failover"

    def add(self, other: "Tally") -> None:
        """Add another's counts to this one's."""
        self.attempts += other.attempts
        self.succeeded += other.succeeded
        self.durations.buckets.update(other.durations.buckets)
        self.retries += other.retries
        self.failovers += other.failovers
        self.ejections += other.ejections
        if other.last_error is not None:
            self._remember(other.last_error, other.last_error_at)

    def _remember(self, error: str, at: str) -> None:
        # Lines of several processes may come one process after another: the time decides.
        if at >= self.last_error_at:
            self.last_error, self.last_error_at = error, at


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
        tally, dead = self.tally, self.dead_letters
        return {
            "subscription_id": self.subscription_id,
            "target": self.target,
            "attempts": tally.attempts,
            "succeeded": tally.succeeded,
            "success_rate": round(tally.succeeded / tally.attempts, 6) if tally.attempts else None,
            **{name: _rounded(tally.durations.percentile(share)) for name, share in PERCENTILES},
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
    add up to the lines taken.
    """

    def __init__(self) -> None:
        self.used = 0
        self.other = 0
        self.skipped = 0
        self._targets: dict[tuple[str, str], Tally] = {}
        self._dead: dict[str, Counter[str]] = {}

    @property
    def lines(self) -> int:
        """How many lines were taken."""
        return self.used + self.other + self.skipped

    def take(self, line: bytes) -> None:
        """Take one line; what a container runtime writes in front of the JSON object is passed over."""
        # Looking for bytes costs a tenth of parsing: lines of no interest are not parsed.
        if not (
            b'"attempt.' in line
            or b'"delivery.dead_lettered"' in line
            or b'"target.ejected"' in line
        ):
            self.other += _OURS in line
            self.skipped += _OURS not in line
            return
        try:
            told = orjson.loads(line if line[:1] == b"{" else line[line.index(b"{") :])
            if told["service"] != _SERVICE:
                self.skipped += 1
            elif self._count(told):
                self.used += 1
            else:
                self.other += 1
        except (ValueError, KeyError, TypeError):
            self.skipped += 1

    def skip(self) -> None:
        """Note a line that was too long to look at."""
        self.skipped += 1

    def rows(self) -> Iterator[Row]:
        """Yield for each subscription, by id, its sum and then its targets."""
        targets: dict[str, list[tuple[str, Tally]]] = {name: [] for name in self._dead}
        for (subscription, target), tally in sorted(
            self._targets.items(), key=lambda item: item[0]
        ):
            targets.setdefault(subscription, []).append((target, tally))
        for subscription, tallies in sorted(targets.items()):
            whole = Tally()
            for _, tally in tallies:
                whole.add(tally)
            yield Row(subscription, None, whole, self._dead.get(subscription, Counter()))
            yield from (Row(subscription, target, tally, None) for target, tally in tallies)

    def _count(self, told: dict[str, Any]) -> bool:
        match told["message"]:
            case "attempt.succeeded" | "attempt.failed":
                self._at(told).attempt(told)
            case "target.ejected":
                self._at(told).ejections += 1
            case "delivery.dead_lettered":
                reasons = self._dead.setdefault(str(told["subscription_id"]), Counter())
                reasons[str(told["reason"])] += 1
            case _:
                return False
        return True

    def _at(self, told: dict[str, Any]) -> Tally:
        key = (str(told["subscription_id"]), str(told["target"]))
        tally = self._targets.get(key)
        if tally is None:
            tally = self._targets[key] = Tally()
        return tally


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
