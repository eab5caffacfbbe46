"""The way to the broker fails: cut, half open, slow; a channel or a consumer ended by the broker."""

import asyncio
import signal
from typing import Final

from pamqp import commands

from tests.faults.proxy import CONSUME, Link, Seen, Watch
from tests.faults.replica import Replica
from tests.faults.scenarios.base import Scenario, Times
from tests.faults.stage import HEARTBEAT, Stage

NOTICED: Final = 4 * (HEARTBEAT + 1) + 20.0
"""Seconds within which a silent connection is given up: three heartbeats (each a second late), and room."""


async def _link(stage: Stage, *, consuming: bool) -> Link:
    find = stage.proxy.consuming if consuming else stage.proxy.publishing
    link: Link = await stage.until(find, "a connection through the proxy")
    return link


async def _back(stage: Stage, replica: Replica, lost_before: int, seconds: float = 60.0) -> None:
    """See that a session was lost, that there is another, and that the load flows."""
    await stage.until(
        lambda: replica.lost_sessions > lost_before, "the loss of the session is noticed", seconds
    )
    await stage.ready(replica)
    await stage.progress()


class Cut(Scenario):
    """A reset or an end of the stream, in the middle of whatever frame is under way."""

    name = "cut"
    what = "connection cut in the middle of a frame"
    times = Times(60, 8)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        await stage.moments(0.0, 0.5)
        link = await _link(stage, consuming=number % 2 == 0)
        if number % 3 == 2:
            link.cut(reset=stage.chance.random() < 0.5)
        else:
            link.cut_after(stage.chance.randrange(1, 4000))
        await _back(stage, replica, lost)


class CutWhileConnecting(Scenario):
    """The next connections are cut after so many bytes: in a handshake, a declaration, a first delivery."""

    name = "cut-connecting"
    what = "connection cut while the dispatcher connects and declares"
    times = Times(60, 4)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        # A handshake is some 600 bytes, the declarations that follow some 12,000.
        stage.proxy.budgets[:] = [stage.chance.randrange(1, 12_000) for _ in range(2)]
        (await _link(stage, consuming=True)).cut()
        await _back(stage, replica, lost, 120.0)
        stage.proxy.budgets.clear()


class HalfOpen(Scenario):
    """Packets are swallowed and nobody is told, neither by a reset nor by an end."""

    name = "half-open"
    what = "connection half open (packets swallowed, no reset)"
    times = Times(12, 1)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        await stage.ready(replica)  # one that has just been started has hardly any open
        lost = replica.lost_sessions
        open_before = replica.descriptors
        stage.proxy.swallows = number % 3 == 2  # and new connections come to nothing either
        if number % 3 == 1:  # or come to a stop in a handshake or a declaration
            stage.proxy.freezes = True
            stage.proxy.budgets[:] = [stage.chance.randrange(1, 12_000)]
        both = number % 2 == 0
        for consuming in (True, False) if both else (stage.chance.random() < 0.5,):
            (await _link(stage, consuming=consuming)).freeze()
        if stage.proxy.swallows:
            await stage.moments(8.0, 16.0)
            stage.proxy.swallows = False
        await _back(stage, replica, lost, NOTICED + 20.0)
        stage.proxy.reset()
        if replica.descriptors > open_before + 20:
            stage.problems.append(
                f"open descriptors: {open_before} before, {replica.descriptors} after"
            )


class Slow(Scenario):
    """Latency and little bandwidth for a while: nothing may be given up, nothing doubled without cause."""

    name = "slow"
    what = "connection slow (latency up to 0.3 s, 30 kB/s)"
    times = Times(8, 1)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        stage.proxy.latency = stage.chance.uniform(0.02, 0.3)
        stage.proxy.bytes_per_second = 30_000.0
        await stage.progress(10, 120.0)
        await stage.moments(2.0, 4.0)
        stage.proxy.reset()
        await stage.ready(replica)
        await stage.progress()


class ChannelClosed(Scenario):
    """The broker closes a channel: an ack that it does not know, a queue that is not there."""

    name = "channel-closed"
    what = "channel closed by the broker"
    times = Times(40, 3)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        await stage.moments(0.0, 0.5)
        if number % 2:
            link = await _link(stage, consuming=False)
            missing = commands.Queue.Declare(queue="there-is-none", passive=True)
            link.tell_broker(link.publishing_channel, missing)
        else:
            link = await _link(stage, consuming=True)
            channel = stage.chance.choice(sorted(link.consumer_tags))
            link.tell_broker(channel, commands.Basic.Ack(delivery_tag=2**40))
        await _back(stage, replica, lost)


class ConsumerCancelled(Scenario):
    """The broker cancels a consumer."""

    name = "consumer-cancelled"
    what = "consumer cancelled by the broker"
    times = Times(40, 3)

    async def strike(self, stage: Stage, number: int) -> None:
        [replica] = stage.replicas
        lost = replica.lost_sessions
        await stage.moments(0.0, 0.5)
        link = await _link(stage, consuming=True)
        channel = stage.chance.choice(sorted(link.consumer_tags))
        tag = link.consumer_tags[channel]
        link.tell_client(channel, commands.Basic.Cancel(consumer_tag=tag, nowait=True))
        await _back(stage, replica, lost)


class DrainWithoutBroker(Scenario):
    """SIGTERM while the connection is away, coming back, or going: it still ends, with status 0."""

    name = "drain-disconnected"
    what = "SIGTERM while the connection is lost or coming back"
    times = Times(30, 4)

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.ready(replica)
        await stage.progress()
        link = await _link(stage, consuming=number % 2 == 0)
        match number % 4:
            case 0:  # gone for good, and the drain begins at once
                stage.proxy.refuses = True
                link.cut()
                await stage.moments(0.0, 0.3)
            case 1:  # the drain begins between one consumer and the next of a new session
                stage.receivers.slow = 100.0
                stage.proxy.watch = self._at_first_consumer(stage, replica)
                link.cut()
                await replica.line("service.draining", seconds=60)
                stage.proxy.reset()
            case 2:  # half open: what the drain asks of the broker is never answered
                link.freeze()
            case _:  # cut while it drains
                stage.receivers.slow = 20.0
        if number % 4 != 1:
            replica.send(signal.SIGTERM)
        if number % 4 == 3:
            await stage.moments(0.0, 0.3)
            link.cut()
        status = await self._ended(stage, replica)
        if status != 0:
            stage.problems.append(f"strike {number + 1}: exit status {status} after SIGTERM")
        stage.deaths += 1  # what it held and could not settle
        stage.receivers.slow = 1.0
        stage.proxy.reset()
        await stage.replica(wait=False)

    @staticmethod
    def _at_first_consumer(stage: Stage, replica: Replica) -> Watch:
        def watch(_link: Link, seen: Seen, to_broker: bool) -> bool:  # noqa: FBT001
            if to_broker and seen.method == CONSUME:
                stage.proxy.latency = 0.05
                replica.send(signal.SIGTERM)
            return True

        return watch

    @staticmethod
    async def _ended(stage: Stage, replica: Replica) -> int:
        try:
            return await replica.ended(25)
        except TimeoutError:
            told = "\n".join(replica.raw[-3:])
            stage.problems.append(f"no end within 25 s of SIGTERM (drain timeout 10 s): {told}")
            replica.send(signal.SIGKILL)
            await asyncio.wait_for(replica.ended(), 10)
            return 0
