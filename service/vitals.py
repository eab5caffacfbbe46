"""What is told of the whole process: the admin port's pages, the gauges, the regular line.

It looks and changes nothing; what it looks at is given to it.  What nobody else keeps lies here: since
when it drains, whether the files of subscriptions are refused, what waits in the broker for people.
"""

from collections.abc import Sequence
from typing import Any

from service import __version__
from service.admin import AdminPages
from service.bounded_log import BoundedLog
from service.broker.connection import Broker, Waiting
from service.broker.consumer import Lane
from service.clock import Clock
from service.log import LineSink
from service.metrics import Metrics
from service.states import States
from service.subscriptions import SubscriptionWatcher


class Vitals(AdminPages):
    """What an operator can ask of a process, and what it says of itself.

    `draining_since` is in monotonic seconds, `stale` true while the files that are there are refused.
    """

    def __init__(
        self,
        metrics: Metrics,
        log: BoundedLog,
        sink: LineSink,
        clock: Clock,
        watcher: SubscriptionWatcher,
        states: States,
        lanes: Sequence[Lane],
        broker: Broker,
    ) -> None:
        self.draining_since: float | None = None
        self.stale = False
        self.waiting: Waiting | None = None
        self._metrics = metrics
        self._log = log
        self._sink = sink
        self._clock = clock
        self._watcher = watcher
        self._states = states
        self._lanes = lanes
        self._broker = broker
        self._watch()

    def in_flight(self) -> int:
        """Return how many messages are being worked on or wait for their turn."""
        return sum(lane.in_flight for lane in self._lanes)

    async def not_ready(self) -> list[str]:
        """Return what readiness still waits for."""
        return self._missing()

    async def metrics(self) -> bytes:
        """Return the metrics page."""
        return self._metrics.page()

    def state(self) -> dict[str, Any]:
        """Return what the regular line tells of now."""
        health = self._states.health(self._clock.monotonic())
        return {
            "ready": not self._missing(),
            "connected": self._broker.consuming,
            "blocked": self._broker.blocked,
            **{f"in_flight_{lane.name}": lane.in_flight for lane in self._lanes},
            "subscriptions": len(self._watcher.current),
            "subscriptions_stale": self.stale,
            "targets_healthy": health.healthy,
            "targets_ejected": health.ejected + health.probing,
            "targets_gone": health.gone,
            "ejected_for_s": round(health.ejected_for),
            "lines_total": self._sink.written,
            **self._waiting_now(),
        }

    def counts(self) -> dict[str, int]:
        """Return what the regular line tells of what happened, as totals since the start."""
        return {
            **self._metrics.counts(),
            "lines_lost": self._sink.lost,
            "lines_left_out": self._log.left_out,
        }

    async def status(self) -> dict[str, Any]:
        """Return what is known of lanes, targets and the broker."""
        now = self._clock.monotonic()
        return {
            "version": __version__,
            "ready": not self._missing(),
            "waiting_for": self._missing(),
            "broker": {"consuming": self._broker.consuming, "blocked": self._broker.blocked},
            "lanes": {
                lane.name: {"in_flight": lane.in_flight, "prefetch": lane.prefetch}
                for lane in self._lanes
            },
            "subscriptions": {
                "count": len(self._watcher.current),
                "loaded_at": self._watcher.current.loaded_at,
            },
            "targets": [
                {
                    "subscription_id": known.subscription.id,
                    "target": state.label,
                    "weight": state.target.weight,
                    "effective_weight": state.effective_weight(now) / 100,
                    "backup": state.target.backup,
                    "health": state.health,
                    "failures": state.failures,
                    "in_flight": state.in_flight,
                    "max_in_flight": state.target.max_in_flight,
                    "latency_ms": None if state.latency is None else round(1000 * state.latency, 1),
                    "throttled_for_s": round(max(0.0, state.throttled_until - now), 1),
                    "pace": None if (pace := state.known_pace(now)) is None else round(pace, 2),
                }
                for known in self._states.known()
                for state in known.targets
            ],
        }

    def _missing(self) -> list[str]:
        missing = []
        if self.draining_since is not None:
            missing.append("draining")
        if not self._broker.consuming:
            missing.append("the broker is not connected")
        return missing

    def _watch(self) -> None:
        for lane in self._lanes:
            self._metrics.watch_in_flight(lane.name, lambda lane=lane: lane.in_flight)  # type: ignore[misc]
        self._metrics.watch(
            "broker_connected",
            "1 while every lane consumes.",
            lambda: float(self._broker.consuming),
        )
        self._metrics.watch(
            "broker_blocked",
            "1 while an alarm stops publishing.",
            lambda: float(self._broker.blocked),
        )
        self._metrics.watch(
            "subscriptions", "Subscriptions in force.", lambda: float(len(self._watcher.current))
        )
        self._metrics.watch(
            "subscriptions_stale",
            "1 while the files of subscriptions are refused, and those before them are in force.",
            lambda: float(self.stale),
        )
        self._metrics.watch("draining_seconds", "For how long it has drained.", self._draining_for)
        self._metrics.watch_health(lambda: self._states.health(self._clock.monotonic()))
        self._watch_waiting()
        self._watch_lines()

    def _watch_waiting(self) -> None:
        known = self._metrics.watch_known
        for name, description in (
            ("unrouted_messages", "Messages in the unrouted queue; must be 0."),
            ("dead_letters_waiting", "Dead letters that wait for somebody to decide."),
            (
                "rejected_events_waiting",
                "Rejected events that do, those that the broker parked included.",
            ),
        ):
            known(name, description, lambda name=name: self._waiting_now().get(name))  # type: ignore[misc]

    def _waiting_now(self) -> dict[str, int]:
        """Return what waits in the broker for people; nothing while that cannot be known."""
        if self.waiting is None or not self._broker.consuming:
            return {}
        return {
            "unrouted_messages": self.waiting.unrouted,
            "dead_letters_waiting": self.waiting.dead,
            "rejected_events_waiting": self.waiting.rejected,
        }

    def _watch_lines(self) -> None:
        total, log, sink = self._metrics.watch_total, self._log, self._sink
        total("log_lines", "Log lines written.", lambda: sink.written)
        total("log_lines_lost", "Log lines that nobody took.", lambda: sink.lost)
        total("log_lines_left_out", "Log lines left out: of what flaps.", lambda: log.left_out)
        total(
            "subscriptions_refused",
            "Changes of the subscriptions that were refused.",
            lambda: log.counts["subscriptions.refused"],
        )
        total("faults", "Faults of this program.", lambda: log.counts["service.fault"])

    def _draining_for(self) -> float:
        return 0.0 if self.draining_since is None else self._clock.monotonic() - self.draining_since
