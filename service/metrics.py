"""Metrics for Prometheus; labels come from closed sets, so that their number is bounded.

Children are looked up once and kept, because a lookup costs more than the count; those of closed sets
exist from the start, so that the first of a kind is seen as an increase.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from service.core.delivery import DeferCause, Reason

REJECTIONS = (
    "not_json", "invalid_envelope", "invalid_type", "too_large", "schema_violation", "poison",
)  # fmt: skip
_NAMESPACE = "webhook_dispatcher"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)


class _Attempts:
    """Attempts by lane and outcome, and how long they took; added up at a scrape.

    Counting goes on for every attempt and costs a tenth of what the library's counters do (locks).
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    @property
    def total(self) -> int:
        """Return how many there were."""
        return sum(self._counts.values())

    @property
    def delivered(self) -> int:
        """Return how many were answered 2xx."""
        return sum(count for (_, outcome), count in self._counts.items() if outcome[0] == "2")

    def add(self, lane: str, outcome: str, seconds: float) -> None:
        key = (lane, outcome)
        self._counts[key] = self._counts.get(key, 0) + 1
        if lane not in self._buckets:
            self._buckets[lane] = [0] * (len(_BUCKETS) + 1)
            self._sums[lane] = 0.0
        self._buckets[lane][bisect_left(_BUCKETS, seconds)] += 1
        self._sums[lane] += seconds

    def collect(self) -> Iterator[Metric]:
        """Give the metrics; the library's collector protocol."""
        yield self._by_outcome()
        yield self._durations()

    def _by_outcome(self) -> Metric:
        told = CounterMetricFamily(
            f"{_NAMESPACE}_attempts",
            "Attempts by outcome: the class of the status, or of the failure.",
            labels=("lane", "outcome"),
        )
        sums: dict[tuple[str, str], int] = {}
        for (lane, outcome), count in self._counts.items():
            kind = f"{outcome[0]}xx" if outcome[0].isdigit() else outcome
            sums[lane, kind] = sums.get((lane, kind), 0) + count
        for labels, total in sums.items():
            told.add_metric(labels, total)
        return told

    def _durations(self) -> Metric:
        told = HistogramMetricFamily(
            f"{_NAMESPACE}_attempt_duration_seconds",
            "From the start of an attempt to the last byte of the answer.",
            labels=("lane",),
        )
        bounds = [*(str(float(bound)) for bound in _BUCKETS), "+Inf"]
        for lane, counts in self._buckets.items():
            cumulated = accumulate(counts)
            told.add_metric((lane,), list(zip(bounds, cumulated, strict=True)), self._sums[lane])
        return told


class Metrics:
    """Everything that is counted, and the page that shows it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._received = self._counter(
            "messages_received_total", "Messages taken from a lane's queue.", "lane"
        )
        self._attempts = _Attempts()
        self._registry.register(self._attempts)
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
        self._unrouted = Gauge(
            "unrouted_messages",
            "Messages in the unrouted queue; must be 0.",
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
        for rejection in REJECTIONS:
            self._rejected.labels(rejection)
        self._lanes: dict[str, Counter] = {}

    def received(self, lane: str) -> None:
        """Count a message taken from a lane."""
        child = self._lanes.get(lane)
        if child is None:
            child = self._lanes[lane] = self._received.labels(lane)
        child.inc()

    def attempted(self, lane: str, outcome: str, seconds: float) -> None:
        """Count an attempt: `outcome` is a status or the name of a failure."""
        self._attempts.add(lane, outcome, seconds)

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

    def unrouted(self, messages: int) -> None:
        """Note how many messages the catch-all queue holds."""
        self._unrouted.set(messages)

    def watch_in_flight(self, lane: str, count: Callable[[], int]) -> None:
        """Show a lane's messages in flight."""
        self._in_flight.labels(lane).set_function(count)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for at each scrape."""
        Gauge(name, description, namespace=_NAMESPACE, registry=self._registry).set_function(value)

    def counts(self) -> dict[str, int]:
        """Return what the regular line tells, since the start and over all labels."""
        return {
            "received": _sum(self._received),
            "attempts": self._attempts.total,
            "delivered": self._attempts.delivered,
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
