"""The composition root: builds the parts, runs them, drains.  The only place that wires.

`run` is the whole life of a process, top to bottom.
"""

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from service.admin import admin_port
from service.bounded_log import BoundedLog
from service.broker import topology
from service.broker.connection import Broker, Waiting
from service.broker.consumer import Lane
from service.broker.opening import Address
from service.broker.outbox import Outbox
from service.broker.publisher import Publisher
from service.budget import Budget
from service.clock import SystemClock, WakingClock
from service.core.address import EgressRules
from service.deliver import Deliverer
from service.dispatch import Dispatcher
from service.errors import ConfigurationError, DispatcherError
from service.faults import tell_fault
from service.heartbeat import Heartbeat
from service.log import LAST_LINES, AttemptLines, LineSink, attempt_lines, configure
from service.metrics import Metrics
from service.report import Reporter
from service.schemas import PACKAGED, EventSchemas
from service.settings import Read, Settings, unknown_names
from service.signals import stop_signal
from service.states import States
from service.subscriptions import Changes, Snapshot, SubscriptionWatcher
from service.vitals import Vitals
from service.webhook.formats import render
from service.webhook.sender import WebhookSender

SLOW_SHARE_INTAKE = 0.25
SLOW_SHARE_BACKLOG = 0.75
LAST_ACKS = 2.0
"""Seconds in which the acks of what is done have to leave when the rest is cut off."""


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
        self._clock = WakingClock()
        self._metrics = Metrics()
        self._states = States(settings.replicas)
        self._watcher = SubscriptionWatcher(
            settings.subscriptions,
            allow_http=settings.allow_http,
            environ=self._environ,
            on_loaded=self._loaded,
            on_refused=self._refused,
            on_undecided=self._filter_failed,
        )
        self._schemas = EventSchemas.load(settings.schemas or PACKAGED)
        self._sender = WebhookSender(
            rules=egress_rules(settings), proxy=settings.egress_proxy_url, clock=self._clock
        )
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
        self._vitals = Vitals(
            self._metrics,
            log,
            sink,
            self._clock,
            self._watcher,
            self._states,
            self._lanes,
            self._broker,
        )
        self._heartbeat = Heartbeat(log, self._clock, self._vitals.state, self._vitals.counts)

    async def run(self, inherited: Inherited) -> None:
        """Run until SIGTERM, SIGINT or a fault, then drain.

        Raises ConfigurationError at the start only, and DispatcherError where it was a fault.
        """
        await self._watcher.start()
        for name, nearest in unknown_names(self._environ, self._environ.names):
            self._log.warning("settings.unknown", name=name, nearest=nearest)
        gc.collect()
        gc.freeze()  # what is there now stays; the collector need not walk it again
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signal(inherited.lifeline_fd))
            await stack.enter_async_context(self._sender)
            await stack.enter_async_context(
                admin_port(
                    self._settings.admin_host,
                    self._settings.admin_port,
                    self._vitals,
                    None
                    if inherited.admin_fd is None
                    else socket.socket(fileno=inherited.admin_fd),
                )
            )
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._for_ever(where, loop, stop))
                    for where, loop in (
                        ("subscriptions", self._watcher.run()),
                        ("broker", self._broker.run()),
                        ("log", self._log.run()),
                        ("heartbeat", self._heartbeat.run()),
                        ("clock", self._clock.run()),
                    )
                ]
                await stop.wait()
                await self._drain()
                faulty = any(task.done() for task in loops)
                for task in loops:
                    task.cancel()
        if faulty:
            raise DispatcherError("ended by a fault of the program: see service.fault in its log")

    async def _for_ever(
        self, where: str, loop: Coroutine[Any, Any, None], stop: asyncio.Event
    ) -> None:
        """Run a loop of the program; where it ends by itself the process drains, and the other loops go on."""
        try:
            await loop
        except Exception as error:  # noqa: BLE001 - nobody knows what a fault is
            tell_fault(self._log, where, error)
        stop.set()

    async def _drain(self) -> None:
        started = self._clock.monotonic()
        self._vitals.draining_since = started
        timeout = self._settings.drain_timeout
        self._log.info("service.draining", in_flight=self._vitals.in_flight(), timeout_s=timeout)
        await self._broker.stop_consuming()
        drained = asyncio.gather(*(lane.drained() for lane in self._lanes))
        await asyncio.wait([drained], timeout=timeout)
        left = self._vitals.in_flight()
        if left:
            drained.cancel()
            cut_off = asyncio.gather(*(lane.cut_off() for lane in self._lanes))
            await asyncio.wait([cut_off], timeout=LAST_ACKS)
        self._log.flush()
        self._heartbeat.beat()  # what it counted since the last one would be missing from every sum
        self._log.info(
            "service.stopped",
            left=left,
            duration_ms=round(1000 * (self._clock.monotonic() - started)),
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
            self._doubt,
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

    def _doubt(self, queue: str) -> bool:
        return self._broker.doubt(queue)

    def _note_waiting(self, waiting: Waiting) -> None:
        self._vitals.waiting = waiting

    def _loaded(self, snapshot: Snapshot, changes: Changes) -> None:
        self._vitals.stale = False
        self._states.keep(snapshot.get, changes.removed, changes.changed)
        self._sender.keep(snapshot.get)
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
        self._vitals.stale = True
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


def _raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may allow itself: usual soft limits are for old programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(settings: Settings, environ: Mapping[str, str], inherited: Inherited) -> None:
    """Run one dispatcher process until it is told to stop.

    Raises ConfigurationError where it cannot start; the broker being away is no reason not to.  Raises
    DispatcherError, after its drain, where a fault of the program ended it.
    """
    _raise_descriptor_limit()
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
