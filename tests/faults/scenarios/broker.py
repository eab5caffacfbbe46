"""The broker itself fails: a node dies, an alarm goes off, a queue is deleted."""

import asyncio
from typing import Final

from service.broker.opening import Address, open_connection
from service.broker.topology import Names
from tests.faults.scenarios.base import Scenario, Times
from tests.faults.stage import PREFETCH, WIDEST, Stage

START_TIMEOUT: Final = 120.0


class NodeKilled(Scenario):
    """SIGKILL of the only node, and a start."""

    name = "node-killed"
    what = "RabbitMQ killed (SIGKILL) and started again"
    times = Times(15, 2)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        await stage.moments(0.3, 1.5)
        await asyncio.to_thread(stage.broker.kill)
        stage.node_deaths += 1
        await stage.until(lambda: replica.lost_sessions > lost, "the loss is noticed")
        await stage.moments(0.0, 1.0)
        await asyncio.to_thread(stage.broker.start, START_TIMEOUT)
        await stage.ready(replica)
        await stage.progress()


class NodeRestarted(Scenario):
    """An orderly stop of the only node, and a start."""

    name = "node-restarted"
    what = "RabbitMQ stopped in order and started again"
    times = Times(6, 0)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        await stage.moments(0.3, 1.5)
        await asyncio.to_thread(stage.broker.stop)
        stage.node_deaths += 1
        await asyncio.to_thread(stage.broker.start, START_TIMEOUT)
        await stage.ready(replica)
        await stage.progress()


class BothKilled(Scenario):
    """The node dies, and the dispatcher while it waits for it."""

    name = "both-killed"
    what = "RabbitMQ and the dispatcher killed, started in any order"
    times = Times(8, 1)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.moments(0.3, 1.5)
        await asyncio.to_thread(stage.broker.kill)
        stage.node_deaths += 1
        await stage.kill(replica)
        if number % 2:
            replica = await stage.replica(wait=False)
        await asyncio.to_thread(stage.broker.start, START_TIMEOUT)
        if not number % 2:
            replica = await stage.replica(wait=False)
        await stage.ready(replica)
        await stage.progress()


class MemoryAlarm(Scenario):
    """The memory alarm blocks publishers, goes on for a while, and is cleared."""

    name = "memory-alarm"
    what = "memory alarm raised and cleared"
    times = Times(12, 2)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        # RabbitMQ tells of an alarm only those connections that publish while it is up.  The producer is
        # stopped by it; what slow receivers have left to do leads to publishes of the dispatcher still.
        counts = stage.replicas[-1].counts
        failed = counts["attempt.failed"]
        stage.receivers.slow = 100.0
        try:
            await stage.until(lambda: counts["attempt.failed"] > failed + 1, "attempts fail")
            await self._strike(stage, number)
        finally:
            stage.receivers.slow = 1.0
            await self._watermark(stage, "0.4")
        await stage.progress()

    async def _strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        blocked = replica.counts["broker.blocked"]
        await self._watermark(stage, "0.00001")
        await stage.until(
            lambda: replica.counts["broker.blocked"] > blocked, "the alarm is noticed"
        )
        await stage.moments(0.0, 3.0)
        if number % 2:  # the dispatcher dies while the alarm is up
            await stage.kill(replica)
            await stage.ready(await stage.replica(wait=False))
        else:
            await self._watermark(stage, "0.4")
            await stage.until(
                lambda: replica.counts["broker.blocked"] > blocked + 1, "its end is noticed"
            )

    @staticmethod
    async def _watermark(stage: Stage, fraction: str) -> None:
        await asyncio.to_thread(stage.broker.ctl, "set_vm_memory_high_watermark", fraction)


class QueueDeleted(Scenario):
    """A queue that is consumed is deleted, with what is in it; the dispatcher declares it anew.

    What was in the queue is gone by definition.  It is told apart from a loss: the producer pauses, and
    only of what is not settled at that moment may anything be missing, and no more than the queue held.
    """

    name = "queue-deleted"
    what = "queue deleted under its consumer"
    times = Times(20, 2)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        names = Names(stage.station.prefix)
        await stage.moments(0.2, 1.0)
        await stage.producer.stop()
        stage.ledger.destroy(stage.ledger.unpaid())
        held = await _delete(stage.broker.url, (names.intake, names.deliveries)[number % 2])
        stage.destroyable += (held + PREFETCH) * WIDEST
        await stage.until(lambda: replica.lost_sessions > lost, "the loss is noticed")
        await stage.ready(replica)
        stage.producer.start()
        await stage.progress()


class IdleQueueDeleted(Scenario):
    """The same with nothing in it: then nothing at all may be missing."""

    name = "empty-queue-deleted"
    what = "empty queue deleted under its consumer"
    times = Times(10, 0)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        names = Names(stage.station.prefix)
        await stage.producer.stop()
        await stage.settle()
        await _delete(stage.broker.url, (names.intake, names.deliveries)[number % 2])
        stage.producer.start()
        await stage.until(lambda: replica.lost_sessions > lost, "the loss is noticed")
        await stage.ready(replica)
        await stage.progress()


async def _delete(url: str, queue: str) -> int:
    """Delete a queue and return how many messages were ready in it."""
    connection = await open_connection(url, Address([url]), "faults (deletes)")
    try:
        channel = await connection.channel()
        return (await channel.queue_delete(queue)).message_count or 0
    finally:
        await connection.close()
