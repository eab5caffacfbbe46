"""The seven steps of the tour, each with what it says, what it does, and what it promises."""

import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from service.demo.dispatcher import Dispatcher
from service.demo.ledger import Ledger
from service.demo.place import DemoFailed, Place
from service.demo.receivers import Receiver
from service.demo.scenery import Scenery, example
from service.demo.screen import Screen, target_name
from service.publish import Publisher


@dataclass(frozen=True, slots=True)
class Step:
    """What is told beforehand, and what is done then; `show` raises DemoFailed for a broken promise."""

    title: str
    text: str
    show: Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Steps:
    """The steps, with all that they work on."""

    place: Place
    screen: Screen
    scenery: Scenery
    ledger: Ledger
    dispatcher: Dispatcher
    publisher: Publisher

    def __iter__(self) -> Iterator[Step]:
        yield Step(
            "One event, two subscriptions",
            """"warehouse" wants order.*, "crm" wants order.created. One event is published; each of
            them gets a delivery of its own, signed with its own secret (Standard Webhooks).""",
            self._fan_out,
        )
        yield Step(
            "Weighted round-robin over two targets",
            """"dashboard" has two targets: dashboard-a with weight 3, dashboard-b with weight 1.
            Eight builds are completed. The heavier target does not get its share in one go.""",
            self._balance,
        )
        yield Step(
            "A target that is down: failover at once",
            """"on-call" has pager-a and, should that fail, pager-b. Nothing listens at pager-a. The
            next target is tried in the same round, without waiting.""",
            self._fail_over,
        )
        yield Step(
            "A receiver that is unwell: retries on schedule",
            """"billing" answers 503 twice. Its retry schedule is 1 s, 2 s (the default goes on for
            days). Meanwhile the delivery waits in RabbitMQ, not in the dispatcher's memory.""",
            self._retry,
        )
        yield Step(
            "A receiver that stays down: dead letter, then redrive",
            """"dunning" answers 500, and its schedule ends after one retry. The delivery becomes a
            dead letter: parked in RabbitMQ with its history until somebody puts it back to work.""",
            self._dead_letter,
        )
        yield Step(
            "An event that breaks its schema: rejected",
            """An order without its order_id, which the schema of order.created demands. No
            subscriber gets the event; it is parked in RabbitMQ with the reason.""",
            self._reject,
        )
        yield Step(
            "SIGTERM in the middle of a delivery",
            """An order is published while "warehouse" takes its time to answer. Then the dispatcher
            is told to end, as Kubernetes does it: it takes no more events, and finishes what it has
            begun.""",
            self._drain,
        )

    async def _fan_out(self) -> None:
        event_id = await self._publish("order.created", ["warehouse", "crm"])
        await self._succeeded(2, event_id=event_id)
        for name in ("warehouse", "crm"):
            seen = self.scenery.receivers[name].accepted
            _expect([one.webhook_id for one in seen] == [event_id], f"{name} has the event once")
        self.screen.good("Both have it, each signature is valid. One of the two log lines in full:")
        written = zip(self.dispatcher.lines, self.dispatcher.raw, strict=True)
        self.screen.json(next(raw for line, raw in written if line.get("event_id") == event_id))

    async def _balance(self) -> None:
        for count in range(1, 9):
            await self._publish("build.completed", ["dashboard"])
            await self._succeeded(count, subscription_id="dashboard")
            await self.screen.pause(0.2)
        lines = self.dispatcher.of("attempt.succeeded", subscription_id="dashboard")
        sequence = " ".join(target_name(line["target"])[-1] for line in lines)
        _expect(sequence == "a a b a a a b a", f"the sequence is a a b a, twice; it was {sequence}")
        got = [
            len(self.scenery.receivers[name].accepted) for name in ("dashboard-a", "dashboard-b")
        ]
        _expect(got == [6, 2], f"the receivers count 6 and 2; it was {got}")
        self.screen.good(f"The sequence was {sequence}: three to one. The receivers count 6 and 2.")

    async def _fail_over(self) -> None:
        event_id = await self._publish("alert.raised", ["on-call"])
        await self._succeeded(1, event_id=event_id)
        decisions = [
            line["decision"] for line in self.dispatcher.of("attempt.failed", event_id=event_id)
        ]
        _expect(decisions == ["failover"], f"one attempt ends in a failover; it was {decisions}")
        _expect(len(self.scenery.receivers["pager-b"].accepted) == 1, "pager-b has the alert once")
        self.screen.good("pager-a could not be reached (status `connect`), pager-b has the alert.")

    async def _retry(self) -> None:
        receiver = self.scenery.receivers["billing"]
        receiver.answer(503, 503)
        event_id = await self._publish("payment.succeeded", ["billing"])
        await self._succeeded(1, event_id=event_id)
        statuses = [one.status for one in receiver.seen]
        _expect(statuses == [503, 503, 200], f"the answers are 503, 503, 200; it was {statuses}")
        _expect(_ids(receiver) == {event_id}, "every attempt carries the same webhook-id")
        first, second, third = (one.at for one in receiver.seen)
        self.screen.good(
            f"Accepted at the third attempt. The waits were {second - first:.1f} s and"
            f" {third - second:.1f} s, and the webhook-id was the same each time."
        )

    async def _dead_letter(self) -> None:
        receiver = self.scenery.receivers["dunning"]
        receiver.fail_with(500)
        event_id = await self._publish("payment.failed", ["dunning"])
        await self.dispatcher.line("delivery.dead_lettered", event_id=event_id)
        dead = await self._listed("dead")
        _expect(dead["event_id"] == event_id, "the dead letter is of this event")
        _expect(dead["reason"] == "exhausted", "its reason is `exhausted`")
        await self.screen.pause()
        self.screen.good(
            "It is kept. Now dunning is well again: the dead letter starts anew with its first round."
        )
        receiver.answer()
        await self._redrive(receiver, event_id)

    async def _redrive(self, receiver: Receiver, event_id: str) -> None:
        self.screen.command("dead redrive --subscription dunning")
        told = await self.place.command("dead", "redrive", "--subscription", "dunning")
        _expect([one["redriven"] for one in told] == [1], "one dead letter is redriven")
        await self._succeeded(1, event_id=event_id)
        self.ledger.redriven += 1
        _expect(_ids(receiver) == {event_id}, "every attempt carries the same webhook-id")
        _expect(await self.place.command("dead", "list") == [], "no dead letter is left")
        self.screen.good("Delivered, under the same webhook-id. No dead letter is left.")

    async def _reject(self) -> None:
        data = example("order.created")
        del data["order_id"]
        event_id = await self._publish("order.created", [], data)
        await self.dispatcher.line("event.rejected", event_id=event_id)
        rejected = await self._listed("rejected")
        _expect(rejected["event_id"] == event_id, "the rejected event is this one")
        _expect(rejected["reason"] == "schema_violation", "its reason is `schema_violation`")
        self.screen.good("It is kept as well, for whoever looks after the producer.")

    async def _drain(self) -> None:
        warehouse = self.scenery.receivers["warehouse"]
        before = len(warehouse.seen)
        warehouse.open_.clear()
        event_id = await self._publish("order.created", ["warehouse", "crm"])
        await self.dispatcher.until(
            lambda: len(warehouse.seen) > before, "the order's arrival at warehouse"
        )
        await self._succeeded(1, event_id=event_id, subscription_id="crm")
        self.screen.command(f"kill -TERM {self.dispatcher.pid}", program="")
        self.dispatcher.send_sigterm()
        draining = await self.dispatcher.line("service.draining")
        _expect(draining["in_flight"] == 1, "one event is in flight at SIGTERM")
        await self.screen.pause()
        warehouse.open_.set()
        await self._ended(event_id)

    async def _ended(self, event_id: str) -> None:
        status = await self.dispatcher.ended()
        finished = self.dispatcher.of("attempt.succeeded", event_id=event_id)
        _expect(len(finished) == 2, "the delivery in flight is finished")
        left = [line["left"] for line in self.dispatcher.of("service.stopped")]
        _expect(left == [0], f"nothing is left behind; it was {left}")
        _expect(status == 0, f"the exit status is 0; it was {status}")
        self.screen.good("Once the warehouse had answered, the dispatcher ended: exit status 0.")

    async def _publish(self, event_type: str, owed: list[str], data: Any = None) -> str:
        event_id = str(uuid.uuid4())
        self.screen.publishing(event_type, event_id)
        data = example(event_type) if data is None else data
        await self.publisher.publish(event_type, data, id=event_id)
        self.ledger.confirmed(event_id, owed)
        return event_id

    async def _succeeded(self, count: int, **fields: Any) -> None:
        await self.dispatcher.line("attempt.succeeded", count, **fields)

    async def _listed(self, which: str) -> dict[str, Any]:
        """Return the only one that `dead list` or `rejected list` shows, and show it."""
        self.screen.command(f"{which} list --json")
        listed = await self.place.command(which, "list")
        _expect(len(listed) == 1, f"`{which} list` shows one; it was {len(listed)}")
        self.screen.record(listed[0])
        return listed[0]


def _ids(receiver: Receiver) -> set[str]:
    return {one.webhook_id for one in receiver.seen}


def _expect(kept: bool, promise: str) -> None:  # noqa: FBT001 - whether a promise was kept, and the promise
    if not kept:
        raise DemoFailed(f"the demo promised what was not so: {promise}")
