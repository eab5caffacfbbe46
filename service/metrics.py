"""Metrics for Prometheus; labels come from closed sets, so that their number is bounded.

Children are looked up once and kept, because a lookup costs more than the count; those of closed sets
exist from the start, so that the first of a kind is seen as an increase.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from service.core.delivery import DeferCause, Reason
from service.errors import REJECTED_REASONS
from service.states import Health

_NAMESPACE = "webhook_dispatcher"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)
_AGES = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 600, 1800, 7200, 21600, 86400, 432000)


class _Cell:
    """The attempts of one lane and outcome: how long they took, how old what they delivered was."""

    __slots__ = ("age", "ages", "durations", "seconds")

    def __init__(self) -> None:
        self.durations = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0
        self.ages = [0] * (len(_AGES) + 1)
        self.age = 0.0


class _Attempts:
    """Attempts by lane and outcome; added up at a scrape.

    Counting goes on for every attempt and costs a tenth of what the library's counters do (locks).
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], _Cell] = {}

    @property
    def total(self) -> int:
        """Return how many there were."""
        return sum(sum(cell.durations) for cell in self._cells.values())

    @property
    def delivered(self) -> int:
        """Return how many were answered 2xx."""
        return sum(sum(cell.ages) for cell in self._cells.values())

    @property
    def age(self) -> float:
        """Return how old what they delivered was together, in seconds."""
        return sum(cell.age for cell in self._cells.values())

    def add(self, lane: str, outcome: str, seconds: float) -> None:
        cell = self._cells.get((lane, outcome)) or self._new_cell(lane, outcome)
        cell.durations[bisect_left(_BUCKETS, seconds)] += 1
        cell.seconds += seconds

    def add_delivered(self, lane: str, outcome: str, seconds: float, age: float) -> None:
        cell = self._cells.get((lane, outcome)) or self._new_cell(lane, outcome)
        cell.durations[bisect_left(_BUCKETS, seconds)] += 1
        cell.seconds += seconds
        cell.ages[bisect_left(_AGES, age)] += 1
        if age > 0.0:  # a producer's clock may be ahead of ours
            cell.age += age

    def _new_cell(self, lane: str, outcome: str) -> _Cell:
        cell = self._cells[lane, outcome] = _Cell()
        return cell

    def collect(self) -> Iterator[Metric]:
        """Give the metrics; the library's collector protocol."""
        yield self._by_outcome()
        yield self._durations()
        yield self._delivery_ages()

    def _by_outcome(self) -> Metric:
        told = CounterMetricFamily(
            f"{_NAMESPACE}_attempts",
            "Attempts by outcome: the class of the status, or of the failure.",
            labels=("lane", "outcome"),
        )
        sums: Counts[tuple[str, str]] = Counts()
        for (lane, outcome), cell in self._cells.items():
            kind = f"{outcome[0]}xx" if outcome[0].isdigit() else outcome
            sums[lane, kind] += sum(cell.durations)
        for labels, total in sums.items():
            told.add_metric(labels, total)
        return told

    def _durations(self) -> Metric:
        told = HistogramMetricFamily(
            f"{_NAMESPACE}_attempt_duration_seconds",
            "From the start of an attempt to the last byte of the answer.",
            labels=("lane",),
        )
        for lane in dict.fromkeys(lane for lane, _ in self._cells):
            cells = [cell for (its, _), cell in self._cells.items() if its == lane]
            counts = _added(cell.durations for cell in cells)
            told.add_metric(
                (lane,), _cumulated(_BUCKETS, counts), sum(cell.seconds for cell in cells)
            )
        return told

    def _delivery_ages(self) -> Metric:
        told = HistogramMetricFamily(
            f"{_NAMESPACE}_delivery_age_seconds", "From an event's time to its delivery."
        )
        none = [0] * (len(_AGES) + 1)
        counts = _added([none, *(cell.ages for cell in self._cells.values())])
        told.add_metric((), _cumulated(_AGES, counts), self.age)
        return told


def _added(counts: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*counts, strict=True)]


def _cumulated(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, int]]:
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


class _Asked:
    """Metrics whose values are asked for at each scrape."""

    def __init__(self, ask: Callable[[], Iterable[Metric]]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Give the metrics; the library's collector protocol."""
        return self._ask()


class Metrics:
    """Everything that is counted, and the page that shows it.

    `attempted(lane, outcome, seconds)` and `delivered(lane, outcome, seconds, age)` count an attempt:
    `outcome` is a status or the name of a failure, `age` the event's in seconds.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._received = self._counter(
            "messages_received_total", "Messages taken from a lane's queue.", "lane"
        )
        self._attempts = _Attempts()
        self._registry.register(self._attempts)
        self.attempted = self._attempts.add
        self.delivered = self._attempts.add_delivered
        self._deferred = self._counter(
            "deliveries_deferred_total", "Deliveries put off without an attempt.", "cause"
        )
        self._dead = self._counter(
            "deliveries_dead_lettered_total", "Deliveries parked as dead letters.", "reason"
        )
        self._rejected = self._counter(
            "events_rejected_total", "Messages that could not be read as events.", "reason"
        )
        self._unmatched = Counter(
            "events_unmatched_total",
            "Events that no subscription wanted.",
            namespace=_NAMESPACE,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "messages_in_flight",
            "Messages taken and not yet settled.",
            ("lane",),
            namespace=_NAMESPACE,
            registry=self._registry,
        )
        for cause in DeferCause:
            self._deferred.labels(cause.value)
        for reason in Reason:
            self._dead.labels(reason.value)
        for rejection in REJECTED_REASONS:
            self._rejected.labels(rejection)
        self._lanes: dict[str, Counter] = {}

    def received(self, lane: str) -> None:
        """Count a message taken from a lane."""
        child = self._lanes.get(lane)
        if child is None:
            child = self._lanes[lane] = self._received.labels(lane)
        child.inc()

    def deferred(self, cause: str) -> None:
        """Count a delivery that was put off."""
        self._deferred.labels(cause).inc()

    def dead_lettered(self, reason: str) -> None:
        """Count a dead letter."""
        self._dead.labels(reason).inc()

    def rejected(self, reason: str) -> None:
        """Count a rejected event."""
        self._rejected.labels(reason).inc()

    def unmatched(self) -> None:
        """Count an event that nobody wanted."""
        self._unmatched.inc()

    def watch_in_flight(self, lane: str, count: Callable[[], int]) -> None:
        """Show a lane's messages in flight."""
        self._in_flight.labels(lane).set_function(count)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for at each scrape."""
        Gauge(name, description, namespace=_NAMESPACE, registry=self._registry).set_function(value)

    def watch_known(self, name: str, description: str, value: Callable[[], float | None]) -> None:
        """Show a value that is asked for at each scrape, and nothing while it is not known."""

        def ask() -> Iterable[Metric]:
            yield GaugeMetricFamily(f"{_NAMESPACE}_{name}", description, value=value())

        self._registry.register(_Asked(ask))

    def watch_total(self, name: str, description: str, total: Callable[[], float]) -> None:
        """Show a total that is asked for at each scrape; `name` without its `_total`."""

        def ask() -> Iterable[Metric]:
            yield CounterMetricFamily(f"{_NAMESPACE}_{name}", description, value=total())

        self._registry.register(_Asked(ask))

    def watch_health(self, health: Callable[[], Health]) -> None:
        """Show how the targets are."""

        def ask() -> Iterable[Metric]:
            found = health()
            targets = GaugeMetricFamily(
                f"{_NAMESPACE}_targets", "Targets used so far, by health.", labels=("health",)
            )
            for name in ("healthy", "ejected", "probing", "gone"):
                targets.add_metric((name,), getattr(found, name))
            yield targets
            yield GaugeMetricFamily(
                f"{_NAMESPACE}_target_ejected_seconds",
                "For how long the target left out longest has been.",
                value=found.ejected_for,
            )

        self._registry.register(_Asked(ask))

    def counts(self) -> dict[str, int]:
        """Return what the regular line tells, since the start and over all labels."""
        return {
            "received": _sum(self._received),
            "attempts": self._attempts.total,
            "delivered": self._attempts.delivered,
            "delivered_age_s": int(self._attempts.age),
            "deferred": _sum(self._deferred),
            "dead_lettered": _sum(self._dead),
            "rejected": _sum(self._rejected),
        }

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, namespace=_NAMESPACE, registry=self._registry)


def _sum(counter: Counter) -> int:
    samples = (sample for family in counter.collect() for sample in family.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))
