"""The dispatcher under measurement: one process, its subscriptions, its queues.

The tenant of an event decides who wants it, and so what is measured; what a subscription leaves out has
the defaults of the dispatcher.
"""

import asyncio
import sys
import tempfile
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from yarl import URL

from service.broker.topology import Topology, topology
from service.ports import free_port
from tests.bench.events import EVENT_TYPE, Feed
from tests.bench.plan import IN_FLIGHT
from tests.bench.processes import MeasuringError, module_environ, started
from tests.bench.receiver import Receiver

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FAN_OUTS: Final = (1, 10, 100)
_READY_TIMEOUT: Final = 60.0
_HEARTBEAT: Final = 300
_KEPT_LINES: Final = 5


class Dispatcher:
    """A dispatcher that runs; its log lines are read from a pipe, and counted by their names.

    The lines of the names in `keep` are kept as they are, in `kept`.
    """

    def __init__(self, process: Process, keep: Collection[str] = ()) -> None:
        self.process = process
        self.kept: list[bytes] = []
        self._keep = {name.encode() for name in keep}
        self._lines: dict[bytes, int] = {}
        self._last: list[bytes] = []
        self._connected = asyncio.Event()

    def lines(self, message: str) -> int:
        """Return how many log lines there were of one name."""
        return self._lines.get(message.encode(), 0)

    async def read(self) -> None:
        """Read the log until the process ends."""
        assert self.process.stdout is not None
        rest = b""
        while block := await self.process.stdout.read(2**18):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                name = line.partition(b'"message":"')[2].partition(b'"')[0]
                self._lines[name] = self._lines.get(name, 0) + 1
                if name in self._keep:
                    self.kept.append(line)
            self._last = [*self._last, *lines[-_KEPT_LINES:]][-_KEPT_LINES:]
            if b"broker.connected" in self._lines:
                self._connected.set()

    async def ready(self) -> None:
        """Wait until it consumes; raises MeasuringError with what it last said."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                await self._connected.wait()
        except TimeoutError:
            raise MeasuringError(f"the dispatcher did not start: {self.last_words()}") from None

    def last_words(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(line.decode() for line in self._last)


class Station:
    """A dispatcher, and the names that it owns on the broker."""

    def __init__(self, url: str, feed: Feed, file: Path, environ: Mapping[str, str]) -> None:
        # The broker must not take a process that is held for one that has died.
        self.url = str(URL(url).update_query(heartbeat=str(_HEARTBEAT)))
        self.feed = feed
        self.file = file
        self._prefix = f"bench-{uuid.uuid4().hex[:12]}"
        self.exchange = f"{self._prefix}.events"
        self.topology: Topology = topology(self._prefix, self.exchange, ["#"])
        self.admin_port = free_port()
        self._environ = environ
        self._others: list[str] = []
        self.dispatcher: Dispatcher

    async def fill(self, tenant: str, events: int) -> None:
        """Lay out events for the dispatcher."""
        await self.feed.fill(self.exchange, EVENT_TYPE, tenant, events)

    async def new_queue_like_intake(self) -> str:
        """Declare another queue of the same kind as the dispatcher's intake, and return its name."""
        intake = self.topology.names.intake
        [arguments] = [q.arguments for q in self.topology.queues if q.name == intake]
        name = f"{self._prefix}.bare.{len(self._others)}"
        await self.feed.declare(name, arguments)
        self._others.append(name)
        return name

    async def clear(self) -> None:
        """Delete everything that this station declared."""
        queues = [queue.name for queue in self.topology.queues]
        exchanges = [exchange.name for exchange in self.topology.exchanges]
        await self.feed.delete([*queues, *self._others], [*exchanges, self.exchange])

    def environ(self) -> dict[str, str]:
        """Return the settings: the defaults, but for what a private receiver on loopback needs."""
        return {
            **module_environ(),
            "DISPATCHER_AMQP_URL": self.url,
            "DISPATCHER_PREFIX": self._prefix,
            "DISPATCHER_EVENTS_EXCHANGE": self.exchange,
            "DISPATCHER_SUBSCRIPTIONS": str(self.file),
            "DISPATCHER_ALLOW_HTTP": "true",
            "DISPATCHER_EGRESS_ALLOW": "127.0.0.0/8",
            "DISPATCHER_ADMIN_PORT": str(self.admin_port),
            "BENCH_SECRET": SECRET,
            **self._environ,
        }


@asynccontextmanager
async def station(
    url: str,
    feed: Feed,
    subscriptions: Sequence[dict[str, Any]],
    *,
    environ: Mapping[str, str] | None = None,
    keep: Collection[str] = (),
    arguments: Sequence[str] = (),
) -> AsyncIterator[Station]:
    """Run a dispatcher with these subscriptions and variables; it keeps log lines of the names in `keep`.

    `arguments` are those of `run`.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        it = Station(url, feed, Path(name, "subscriptions.json"), environ or {})
        it.file.write_bytes(document(subscriptions))
        command = (sys.executable, "-m", "service", "run", *arguments)
        try:
            async with started(*command, environ=it.environ()) as process:
                it.dispatcher = Dispatcher(process, keep)
                async with _reading(it.dispatcher):
                    await it.dispatcher.ready()
                    try:
                        yield it
                    except MeasuringError as error:
                        raise MeasuringError(f"{error}\n{it.dispatcher.last_words()}") from error
        finally:
            await it.clear()


@asynccontextmanager
async def _reading(dispatcher: Dispatcher) -> AsyncIterator[None]:
    reading = asyncio.create_task(dispatcher.read())
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def document(subscriptions: Sequence[dict[str, Any]]) -> bytes:
    """Return what a subscriptions file says."""
    return orjson.dumps({"subscriptions": subscriptions})


def subscriptions(fastest: Receiver, hook: Receiver) -> list[dict[str, Any]]:
    """Return the subscriptions of all measurements of a delivery."""
    wanted = [
        subscription(f"fan-out-{fan_out}", fastest.url(f"/hook/{number}"), str(number))
        for fan_out in FAN_OUTS
        for number in range(fan_out)
    ]
    retry = {"schedule": ["1s"], "jitter": 0.0}
    wanted += [
        subscription("direct", hook.url("/hook"), retry=retry),
        subscription("once", hook.url("/once"), retry=retry),
        subscription("arrivals", hook.url("/arrivals")),
        subscription("busy", hook.url("/hook"), max_in_flight=None),
    ]
    return wanted


def subscription(
    tenant: str, url: str, name: str = "", *, max_in_flight: int | None = IN_FLIGHT, **more: Any
) -> dict[str, Any]:
    """Return an entry of a subscriptions file that wants a tenant's orders; `max_in_flight` None: the default."""
    target = {"url": url} if max_in_flight is None else {"url": url, "max_in_flight": max_in_flight}
    return {
        "id": f"{tenant}.{name}" if name else tenant,
        "tenant": tenant,
        "event_types": ["order.*"],
        "targets": [target],
        "signing": {"scheme": "standard", "secrets": [{"env": "BENCH_SECRET"}]},
        **more,
    }
