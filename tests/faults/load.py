"""The steady load: kinds of events, the producer that publishes them, the receivers that take them.

Every end that a delivery can come to is in the mixture: delivered at once, after retries through the
ladder, dead, rejected, still waiting.  The producer goes on through every outage, and knows of each event
whether the broker has it.
"""

import asyncio
import random
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from service.errors import BrokerError, TopologyError
from service.publish import Publisher
from tests.dispatcher import subscription
from tests.faults.ledger import REJECTED, Ledger, Place
from tests.receivers import Answer, Received, Recorder

CONFIRM_TIMEOUT: Final = 30.0
AT_ONCE: Final = 64
PAUSE: Final = 0.2
"""Seconds after a failed publish before the next."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: who wants it, and how often it is published among the others."""

    event_type: str
    owed_to: tuple[str, ...]
    share: int
    data: Any = None


KINDS: Final = (
    Kind("order.shipped", ("prompt", "second"), 50),
    Kind("order.weighed", ("prompt",), 15),
    Kind("flaky.happened", ("flaky", "prompt"), 19),
    Kind("doomed.happened", ("doomed",), 6),
    Kind("refused.happened", ("refused",), 3),
    Kind("patient.happened", ("patient",), 3),
    Kind("order.created", (REJECTED,), 4, {"items": "none: the schema of this type is broken"}),
)


def subscriptions(base: str) -> list[dict[str, Any]]:
    """Return the subscriptions; `base` is the URL of the receivers."""

    def wants(name: str, *types: str, **more: Any) -> dict[str, Any]:
        # Wide open: what is put off here is put off by a fault, not by a busy target.
        target = {"url": f"{base}/{name}", "max_in_flight": 1000}
        return subscription(name, target, event_types=list(types), **more)

    short = ["1s", "1s", "2s", *["3s"] * 20]
    return [
        wants("prompt", "order.*", "flaky.*"),
        wants("second", "order.shipped"),
        wants("flaky", "flaky.*", retry={"schedule": short}),
        wants("doomed", "doomed.*", retry={"schedule": ["1s"]}),
        wants("refused", "refused.*", retry={"permanent_statuses": [400]}),
        wants("patient", "patient.*", retry={"schedule": ["2h", "2h"]}),
    ]


class Receivers:
    """Every receiver of the load, on one port; what they answer depends on the path alone."""

    def __init__(self, ledger: Ledger, chance: random.Random) -> None:
        self.slow = 1.0
        """By what the time for an answer is multiplied."""
        self._ledger = ledger
        self._chance = chance
        self._server = Recorder(answer=self._answer)

    @property
    def base(self) -> str:
        """Return the URL that the subscriptions' paths are below."""
        return f"http://127.0.0.1:{self._server.port}"

    async def enter(self, stack: AsyncExitStack) -> None:
        """Listen until the stack ends."""
        await stack.enter_async_context(self._server)

    async def _answer(self, request: Received) -> Answer:
        self._server.requests.clear()
        debt = (request.headers["webhook-id"], request.path.rsplit("/", 1)[1])
        attempt = self._ledger.attempt(debt, request.body)
        await asyncio.sleep(self.slow * self._chance.uniform(0.0, 0.03))
        status = self._status(debt[1], attempt)
        if status == 200:
            self._ledger.see(Place.DELIVERED, debt)
        return Answer(status)

    @staticmethod
    def _status(name: str, attempt: int) -> int:
        match name:
            case "prompt" | "second":
                return 200
            case "flaky":
                # A 404 is retried and says nothing about the health of the target.
                return 200 if attempt > 1 else 404
            case "refused":
                return 400
            case _:
                return 404


class Producer:
    """Publishes at a steady rate, and keeps the ledger."""

    def __init__(
        self, urls: list[str], exchange: str, ledger: Ledger, chance: random.Random, rate: float
    ) -> None:
        self._publisher = Publisher(urls, exchange, timeout=CONFIRM_TIMEOUT)
        self._ledger = ledger
        self._chance = chance
        self._rate = rate
        self._room = asyncio.Semaphore(AT_ONCE)
        self._under_way: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self.faults: list[str] = []
        """What the publisher raised that it does not promise to raise."""

    def start(self) -> None:
        """Begin, or go on."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Pause, once the outcome of every event is known."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def close(self) -> None:
        """End at once."""
        if self._running is not None:
            self._running.cancel()
        for task in self._under_way:
            task.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await self._publisher.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._room.acquire()
            task = loop.create_task(self._publish())
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            # After an outage it goes on at the same rate: what was not published is not caught up on.
            due = max(due + self._chance.expovariate(self._rate), loop.time() - 0.1)
            await asyncio.sleep(due - loop.time())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._room.release()

    async def _publish(self) -> None:
        [kind] = self._chance.choices(KINDS, [kind.share for kind in KINDS])
        event_id = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        data = (
            kind.data if kind.data is not None else {"n": self._ledger.published, "pad": "x" * 200}
        )
        self._ledger.doubt(event_id, kind.owed_to)
        try:
            await self._publisher.publish(kind.event_type, data, id=event_id)
        except (BrokerError, TopologyError):
            await asyncio.sleep(PAUSE)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.faults.append("publish: cancelled by nobody")
        except Exception as error:  # noqa: BLE001 - which ones there are is what is to be found out
            self.faults.append(f"publish: {type(error).__name__}: {error}")
            await asyncio.sleep(PAUSE)
        else:
            self._ledger.confirm(event_id, kind.owed_to)
