"""What a scenario is played on: a broker, a proxy before it, dispatchers, receivers, a producer."""

import asyncio
import random
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from service.rabbitmq import PrivateBrokerError
from service.watchdog import Watchdog
from tests.dispatcher import Station, write_subscriptions
from tests.faults.ledger import Ledger
from tests.faults.load import Producer, Receivers, subscriptions
from tests.faults.node import Node
from tests.faults.proxy import Proxy
from tests.faults.remains import Remains
from tests.faults.replica import Replica

PREFETCH: Final = 24
"""Of each lane: small, so that the bound on duplicates says something."""
WIDEST: Final = 2
"""The most subscriptions that an event of the load has."""
PER_SESSION: Final = PREFETCH * WIDEST + PREFETCH
"""Debts that may be paid twice because a session or a process ended: what it held unsettled."""
PER_NODE: Final = 32 * 4
"""And because a node died: what the broker itself moves between the levels of the ladder, 32 a queue."""
SETTLE_TIMEOUT: Final = 240.0
QUIET_LOOKS: Final = 2
"""A message on its way from one queue to the next is in neither for a moment."""
HEARTBEAT: Final = 2
_EVERY_LINE: Final = "import service.bounded_log\nservice.bounded_log.MINUTE = 0.0\n"
"""Sessions are lost here more often than a log would tell, and each explains some duplicates."""


class HangError(AssertionError):
    """Something that must come did not come in time."""


@dataclass
class Stage:
    """Everything that a scenario can lay hands on."""

    broker: Node
    proxy: Proxy
    station: Station
    ledger: Ledger
    receivers: Receivers
    producer: Producer
    chance: random.Random
    remains: Remains
    watchdog: Watchdog
    replicas: list[Replica] = field(default_factory=list)
    deaths: int = 0
    node_deaths: int = 0
    destroyable: int = 0
    """Debts that the deleted queues can have held at the most."""
    problems: list[str] = field(default_factory=list)

    @property
    def bound(self) -> int:
        """Return how many duplicates the faults so far explain."""
        lost = self.deaths + sum(replica.lost_sessions for replica in self.replicas)
        return lost * PER_SESSION + self.node_deaths * PER_NODE

    def subscriptions(self) -> list[dict[str, Any]]:
        """Return those of the load."""
        return subscriptions(self.receivers.base)

    async def replica(self, *, wait: bool = True, **environ: str) -> Replica:
        """Start a dispatcher, and wait until it is ready."""
        told = {f"DISPATCHER_{name}": value for name, value in environ.items()}
        replica = Replica(self.station.environ | told, self.station.folder, self.watchdog)
        await replica.launch()
        self.replicas.append(replica)
        if wait:
            await self.ready(replica)
        return replica

    async def kill(self, replica: Replica) -> None:
        """End a dispatcher by SIGKILL; it is a fault only while it works."""
        replica.send(signal.SIGKILL)
        if await replica.ended() != -signal.SIGKILL:
            self.problems.append("the dispatcher had ended before it was killed")
        self.deaths += 1

    async def moments(self, low: float, high: float) -> None:
        """Let the load go on for a random time, in seconds."""
        await asyncio.sleep(self.chance.uniform(low, high))

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait until a condition holds, and return what it gave; raises HangError."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            if time.monotonic() > deadline:
                raise HangError(f"{what}: not within {seconds:g} s")
            await asyncio.sleep(0.02)

    async def progress(self, count: int = 20, seconds: float = 60.0) -> None:
        """Wait for so many deliveries more: the load flows again."""
        before = self.ledger.delivered
        await self.until(
            lambda: self.ledger.delivered >= before + count, "deliveries flow again", seconds
        )

    async def ready(self, replica: Replica, seconds: float = 60.0) -> None:
        """Wait until a dispatcher consumes."""
        await self.until(replica.is_ready, "the dispatcher consumes again", seconds)

    def keep_logs(self, name: str) -> Path:
        """Copy what dispatchers and broker said into a folder of its own, and return it.

        Of a dispatcher's many lines of attempts and deferrals there are none: they are only counted.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        for number, replica in enumerate(self.replicas):
            lines = "".join(f"{line}\n" for line in [*replica.raw, replica.stderr])
            (folder / f"dispatcher-{number}.log").write_text(lines)
        (folder / "rabbitmq.log").write_text(self.broker.output)
        return folder

    async def settle(self, patience: float = SETTLE_TIMEOUT) -> None:
        """Wait, for so many seconds, until nothing is under way any more but what waits for hours."""
        quiet = 0

        async def is_quiet() -> bool:
            nonlocal quiet
            quiet = quiet + 1 if await self._is_quiet() else 0
            return quiet == QUIET_LOOKS

        await self.until(is_quiet, "every queue that is worked on gets empty", patience)

    async def _is_quiet(self) -> bool:
        for replica in self.replicas:
            if replica.runs and await in_flight(replica):
                return False
        try:
            return self.remains.busy.isdisjoint(await self.remains.held(self.broker))
        except PrivateBrokerError:
            return False


async def in_flight(replica: Replica) -> int:
    """Return how many messages a dispatcher works on; 1 where it does not answer."""
    try:
        _, text = await replica.get("/status")
    except aiohttp.ClientError:
        return 1
    return sum(lane["in_flight"] for lane in orjson.loads(text)["lanes"].values())


@asynccontextmanager
async def stage(
    broker: Node,
    urls: list[str],
    chance: random.Random,
    *,
    rate: float,
    direct: bool = False,
) -> AsyncIterator[Stage]:
    """Set a stage; `urls` are the broker's, `direct` keeps the proxy out of the dispatchers' way."""
    name = uuid.UUID(int=chance.getrandbits(128)).hex[:12]
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        watchdog = stack.enter_context(Watchdog())
        watchdog.remove(folder)
        proxy = await stack.enter_async_context(Proxy(broker.port))
        receivers = Receivers(ledger, chance)
        await receivers.enter(stack)
        theirs = urls if direct else [proxy.url]
        station = Station(
            ",".join(f"{url}?heartbeat={HEARTBEAT}" for url in theirs),
            f"faults-{name}",
            f"faults-events-{name}",
            folder,
        )
        station.begin_with(_EVERY_LINE)
        station.environ |= {
            "DISPATCHER_INTAKE_PREFETCH": str(PREFETCH),
            "DISPATCHER_BACKLOG_PREFETCH": str(PREFETCH),
            "DISPATCHER_DRAIN_TIMEOUT": "10s",
        }
        producer = Producer(urls, station.exchange, ledger, chance, rate)
        stack.push_async_callback(producer.close)
        it = Stage(
            broker=broker,
            proxy=proxy,
            station=station,
            ledger=ledger,
            receivers=receivers,
            producer=producer,
            chance=chance,
            remains=Remains(station.prefix),
            watchdog=watchdog,
        )
        write_subscriptions(folder, *it.subscriptions())
        try:
            yield it
        finally:
            for replica in it.replicas:
                await replica.close()
