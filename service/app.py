"""The composition root: builds the parts, runs them, drains.  The only place that wires.

`run` is the whole life of a process, top to bottom.
"""

import asyncio
import gc
import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from service import __version__
from service.admin import admin_port
from service.bounded_log import BoundedLog
from service.broker import topology
from service.broker.connection import Address, Broker, Waiting
from service.broker.consumer import Lane
from service.broker.outbox import Outbox
from service.broker.publisher import Publisher
from service.budget import Budget
from service.clock import Clock, SystemClock
from service.core.address import EgressRules
from service.deliver import Deliverer
from service.dispatch import Dispatcher
from service.errors import ConfigurationError
from service.heartbeat import Heartbeat
from service.log import LAST_LINES, AttemptLines, LineSink, attempt_lines, configure
from service.metrics import Metrics
from service.report import Reporter
from service.schemas import PACKAGED, EventSchemas
from service.settings import Read, Settings, unknown_names
from service.signals import stop_signal
from service.states import States
from service.subscriptions import Changes, Snapshot, SubscriptionWatcher
from service.webhook.formats import render
from service.webhook.sender import WebhookSender

SLOW_SHARE_INTAKE = 0.25
SLOW_SHARE_BACKLOG = 0.75


@dataclass(frozen=True, slots=True)
class Inherited:
    """File descriptors that a worker has from the process that started it.

    The listening socket of its admin port, and a pipe whose end means that the other process is gone.
    """

    admin_fd: int | None = None
    lifeline_fd: int | None = None


class App:
    """One dispatcher process."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        log: BoundedLog,
        lines: AttemptLines,
        sink: LineSink,
    ) -> None:
        self._settings = settings
        self._environ = Read(environ)
        self._log = log
        self._lines = lines
        self._sink = sink
        self._clock: Clock = SystemClock()
        self._metrics = Metrics()
        self._states = States(settings.replicas)
        self._running = False
        self._draining: float | None = None
        self._stale = False
        self._waiting: Waiting | None = None
        self._watcher = SubscriptionWatcher(
            settings.subscriptions,
            allow_http=settings.allow_http,
            environ=self._environ,
            on_loaded=self._loaded,
            on_refused=self._refused,
            on_undecided=self._filter_failed,
        )
        self._schemas = EventSchemas.load(settings.schemas or PACKAGED)
        self._sender = WebhookSender(rules=egress_rules(settings), proxy=settings.egress_proxy_url)
        self._names = topology.Names(settings.prefix)
        self._publisher = Publisher(settings.publish_timeout)
        dispatcher = self._dispatcher()
        self._lanes = [
            Lane(
                "intake",
                self._names.intake,
                settings.intake_prefetch,
                dispatcher.on_event,
                log,
                settings.max_event_bytes,
            ),
            Lane(
                "backlog",
                self._names.deliveries,
                settings.backlog_prefetch,
                dispatcher.on_delivery,
                log,
            ),
        ]
        self._broker = self._new_broker()
        self._heartbeat = Heartbeat(log, self._clock, self._state, self._counts)
        self._watch()

    async def run(self, inherited: Inherited) -> None:
        """Run until SIGTERM or SIGINT, then drain.  Raises ConfigurationError at the start only."""
        await self._watcher.start()
        for name, nearest in unknown_names(self._environ, self._environ.names):
            self._log.warning("settings.unknown", name=name, nearest=nearest)
        gc.collect()
        gc.freeze()  # what is there now stays; the collector need not walk it again
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signal(inherited.lifeline_fd))
            await stack.enter_async_context(self._sender)
            self._running = True
            await stack.enter_async_context(
                admin_port(
                    self._settings.admin_host,
                    self._settings.admin_port,
                    self,
                    None
                    if inherited.admin_fd is None
                    else socket.socket(fileno=inherited.admin_fd),
                )
            )
            loops = [
                asyncio.create_task(self._watcher.run(), name="subscriptions"),
                asyncio.create_task(self._broker.run(), name="broker"),
                asyncio.create_task(self._log.run(), name="log"),
                asyncio.create_task(self._heartbeat.run(), name="heartbeat"),
            ]
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            self._complain(loops)
            await self._drain()
            for task in (*loops, stopping):
                task.cancel()
            await asyncio.gather(*loops, stopping, return_exceptions=True)

    async def _drain(self) -> None:
        started = self._clock.monotonic()
        self._draining = started
        timeout = self._settings.drain_timeout
        self._log.info("service.draining", in_flight=self._in_flight(), timeout_s=timeout)
        await self._broker.stop_consuming()
        drained = asyncio.gather(*(lane.drained() for lane in self._lanes))
        await asyncio.wait([drained], timeout=timeout)
        left = self._in_flight()
        if left:
            drained.cancel()
            await asyncio.gather(*(lane.cut_off() for lane in self._lanes))
        self._log.flush()
        self._heartbeat.beat()  # what it counted since the last one would be missing from every sum
        self._log.info(
            "service.stopped",
            left=left,
            duration_ms=round(1000 * (self._clock.monotonic() - started)),
        )

    def _complain(self, loops: list["asyncio.Task[None]"]) -> None:
        for task in loops:
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None:
                self._log.error(
                    "service.fault", where=task.get_name(), error=f"{type(error).__name__}: {error}"
                )

    def _dispatcher(self) -> Dispatcher:
        settings, log, clock, metrics = self._settings, self._log, self._clock, self._metrics
        outbox = Outbox(self._publisher, self._names, clock)
        deliverer = Deliverer(
            self._sender, outbox, self._states, clock, Reporter(log, metrics, self._lines)
        )
        return Dispatcher(
            deliverer,
            outbox,
            lambda: self._watcher.current,
            self._schemas,
            render,
            clock,
            log,
            metrics,
            intake=_budget("intake", settings.intake_prefetch, SLOW_SHARE_INTAKE),
            backlog=_budget("backlog", settings.backlog_prefetch, SLOW_SHARE_BACKLOG),
            max_event_bytes=settings.max_event_bytes,
        )

    def _new_broker(self) -> Broker:
        settings = self._settings
        return Broker(
            Address(settings.amqp_urls, settings.amqp_ca_file),
            topology.topology(settings.prefix, settings.events_exchange, settings.bindings),
            self._lanes,
            self._publisher,
            self._log,
            self._clock,
            declare=settings.declare_topology,
            on_waiting=self._note_waiting,
        )

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
            lambda: float(self._stale),
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

    def _note_waiting(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def _waiting_now(self) -> dict[str, int]:
        """Return what waits in the broker for people; nothing while that cannot be known."""
        if self._waiting is None or not self._broker.consuming:
            return {}
        return {
            "unrouted_messages": self._waiting.unrouted,
            "dead_letters_waiting": self._waiting.dead,
            "rejected_events_waiting": self._waiting.rejected,
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
        return 0.0 if self._draining is None else self._clock.monotonic() - self._draining

    def _in_flight(self) -> int:
        return sum(lane.in_flight for lane in self._lanes)

    async def not_ready(self) -> list[str]:
        """Return what readiness still waits for."""
        return self._missing()

    async def metrics(self) -> bytes:
        """Return the metrics page."""
        return self._metrics.page()

    def _missing(self) -> list[str]:
        missing = []
        if self._draining is not None:
            missing.append("draining")
        if not self._broker.consuming:
            missing.append("the broker is not connected")
        return missing

    def _state(self) -> dict[str, Any]:
        """Return what the regular line tells of now."""
        health = self._states.health(self._clock.monotonic())
        return {
            "ready": not self._missing(),
            "connected": self._broker.consuming,
            "blocked": self._broker.blocked,
            **{f"in_flight_{lane.name}": lane.in_flight for lane in self._lanes},
            "subscriptions": len(self._watcher.current),
            "subscriptions_stale": self._stale,
            "targets_healthy": health.healthy,
            "targets_ejected": health.ejected + health.probing,
            "targets_gone": health.gone,
            "ejected_for_s": round(health.ejected_for),
            "lines_total": self._sink.written,
            **self._waiting_now(),
        }

    def _counts(self) -> dict[str, int]:
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
                }
                for known in self._states.known()
                for state in known.targets
            ],
        }

    def _loaded(self, snapshot: Snapshot, changes: Changes) -> None:
        self._stale = False
        self._states.keep(snapshot.get, changes.removed, changes.changed)
        if self._running and (changes.changed or changes.removed or changes.files):
            self._sender.close_idle()
            gc.freeze()
        self._log.info(
            "subscriptions.loaded",
            source=str(self._settings.subscriptions),
            subscriptions=len(snapshot),
            added=len(changes.added),
            changed=len(changes.changed),
            removed=len(changes.removed),
        )
        for problem in snapshot.warnings:
            self._log.warning("subscriptions.doubtful", warning=str(problem))

    def _refused(self, error: ConfigurationError) -> None:
        self._stale = True
        self._log.error(
            "subscriptions.refused", source=str(self._settings.subscriptions), error=str(error)
        )

    def _filter_failed(self, subscription_id: str, detail: str) -> None:
        self._log.warning("filter.failed", subscription_id=subscription_id, error=detail)


def egress_rules(settings: Settings) -> EgressRules:
    """Return where deliveries may go."""
    return EgressRules(
        allow=settings.egress_allow,
        deny=settings.egress_deny,
        ports=frozenset(settings.egress_ports),
        allow_http=settings.allow_http,
    )


def _budget(lane: str, prefetch: int, slow_share: float) -> Budget:
    # Half as many attempts as messages: what hangs can hold every attempt and still not every message.
    attempts = max(1, prefetch // 2)
    return Budget(lane, attempts, max(1, int(attempts * slow_share)))


async def run(settings: Settings, environ: Mapping[str, str], inherited: Inherited) -> None:
    """Run one dispatcher process until it is told to stop.

    Raises ConfigurationError where it cannot start; the broker being away is no reason not to.
    """
    sink = LineSink(1)
    sink.attach(asyncio.get_running_loop())
    unbounded = configure(settings.log_level, settings.log_format, sink)
    lines = attempt_lines(settings.log_level, settings.log_format, sink, unbounded)
    log = BoundedLog(unbounded, SystemClock(), settings.log_level)
    log.info("service.started", settings=settings.for_log(), pid=os.getpid())
    try:
        await App(settings, environ, log, lines, sink).run(inherited)
    finally:
        log.flush()
        sink.close(LAST_LINES)
