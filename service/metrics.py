"""Metrics for Prometheus; labels come from closed sets, so that their number is bounded.

Children are looked up once and kept, because a lookup costs more than the count; those of closed sets
exist from the start, so that the first of a kind is seen as an increase.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.core.delivery import DeferCause, Reason

REJECTIONS = (
    "not_json", "invalid_envelope", "invalid_type", "too_large", "schema_violation", "poison",
)  # fmt: skip
_NAMESPACE = "webhook_dispatcher"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)


class Metrics:
    """Everything that is counted, and the page that shows it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._received = self._counter(
            "messages_received_total", "Messages taken from a lane's queue.", "lane"
        )
        self._attempts = self._counter(
            "attempts_total",
            "Attempts by outcome: the class of the status, or of the failure.",
            "lane",
            "outcome",
        )
        self._seconds = Histogram(
            "attempt_duration_seconds",
            "From the start of an attempt to the last byte of the answer.",
            ("lane",),
            namespace=_NAMESPACE,
            registry=self._registry,
            buckets=_BUCKETS,
        )
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
        self._children: dict[tuple[str, str], Counter] = {}
        self._timers: dict[str, Histogram] = {}
        self._lanes: dict[str, Counter] = {}

    def received(self, lane: str) -> None:
        """Count a message taken from a lane."""
        child = self._lanes.get(lane)
        if child is None:
            child = self._lanes[lane] = self._received.labels(lane)
        child.inc()

    def attempted(self, lane: str, outcome: str, seconds: float) -> None:
        """Count an attempt: `outcome` is a status or the name of a failure."""
        kind = f"{outcome[0]}xx" if outcome[0].isdigit() else outcome
        child = self._children.get((lane, kind))
        if child is None:
            child = self._children[lane, kind] = self._attempts.labels(lane, kind)
            self._timers[lane] = self._seconds.labels(lane)
        child.inc()
        self._timers[lane].observe(seconds)

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

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, namespace=_NAMESPACE, registry=self._registry)
