"""Confirmed publishing: a publish is done when every queue it was routed to has it, or it is not done.

The result is a value.  `Confirmed` is durable.  `Unconfirmed` means that nobody knows: the channel died,
the deadline passed, or the broker said no for too long; the session is then given up, so that the message
which led to this publish comes again.  That may double a delivery and never loses one.  `Refused` is for those
who know what else to do with it than to wait for a queue that says no.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from service.broker.publishes import Alarm, Answer, PublishChannel
from service.errors import BrokerError

MAX_UNCONFIRMED: Final = 512
NACK_PAUSE: Final = 0.5
GATHER: Final = 0.01
"""Seconds for which publishes gather: none of them is in a hurry.

Less than acks wait behind an unfinished message (`settler.ALONE_AFTER`), which would else go one by one.
"""
CHANGE_EVERY: Final = 5.0
"""Seconds between two changes of the channel, at least, while it is told no.

RabbitMQ 3.10 says no to all that comes over a channel which has found a quorum queue without its leader, until
the old leader is back; over another channel the new leader takes it.
"""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has it, durably."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Nobody knows whether the broker has it."""

    detail: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker has it not, and a queue goes on saying no."""


Published = Confirmed | Unconfirmed | Refused


class Channels(Protocol):
    """The session that publishes, as far as it opens and closes channels for it."""

    async def to_publish(self) -> AbstractChannel:
        """Open a channel with confirms.  Raises BrokerError."""

    async def let_go(self, channel: AbstractChannel) -> None:
        """Close a channel, without an end of the session."""


class Publisher:
    """Publishes over the channel of the moment; `timeout` in seconds bounds the wait for a confirm.

    `gather`: see `PublishChannel`.

    While the broker blocks publishers (a memory or disk alarm) the wait goes on beyond the timeout:
    giving up would only make the same work come again.
    """

    def __init__(self, timeout: float, gather: float = GATHER) -> None:
        self._timeout = timeout
        self._gather = gather
        self._room = asyncio.Semaphore(MAX_UNCONFIRMED)
        self._channel: PublishChannel | None = None
        self._channels: Channels
        self._on_failure: Callable[[str], None]
        self._retiring: dict[PublishChannel, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        self._changed_at = float("-inf")
        self._alarm = Alarm()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes now; who watches it writes it down here."""
        return self._alarm.is_up

    @blocked.setter
    def blocked(self, is_blocked: bool) -> None:
        self._alarm.note(is_up=is_blocked)

    async def use(self, channels: Channels, on_failure: Callable[[str], None]) -> None:
        """Publish over channels of this session from now on.  Raises BrokerError where it opens none."""
        self._channels, self._on_failure = channels, on_failure
        channel = await channels.to_publish()
        self.blocked = False
        self._channel = self._on(channel)

    def abandon(self) -> None:
        """Forget the session: it is gone."""
        for task in self._retiring.values():
            task.cancel()
        for channel in (self._channel, *self._retiring):
            if channel is not None:
                channel.end("the session was given up")
        self._channel = None
        self._retiring.clear()

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Basic.Properties,
        *,
        patience: float | None = None,
    ) -> Published:
        """Publish persistently, mandatory, and wait for the confirm.

        A nack (a queue that cannot take it now) is tried again until the timeout, over another channel
        every few seconds; or for `patience` seconds only, after which it is `Refused`.
        """
        async with self._room:
            begun = self._alarm.quiet_time()
            while True:
                channel = self._channel
                if channel is None:
                    return Unconfirmed("not connected to the broker")
                match await channel.publish(exchange, routing_key, body, properties):
                    case Answer.TAKEN:
                        return Confirmed()
                    case Answer.UNKNOWN:
                        return Unconfirmed(channel.ended)
                    case Answer.REFUSED:
                        pass
                    case other:
                        assert_never(other)
                refused_for = self._alarm.quiet_time() - begun
                if patience is not None and refused_for > patience:
                    return Refused()
                if refused_for > self._timeout:
                    channel.fail(f"{exchange!r} took no message for too long")
                    return Unconfirmed(channel.ended)
                await asyncio.sleep(NACK_PAUSE)
                await self._change(channel)

    def _on(self, channel: AbstractChannel) -> PublishChannel:
        return PublishChannel(channel, self._timeout, self._alarm, self._on_failure, self._gather)

    async def _change(self, refusing: PublishChannel) -> None:
        """Go on over another channel than one that refuses, unless somebody has seen to that.

        While an alarm is up the broker would open none.
        """
        loop = asyncio.get_running_loop()
        async with self._changing:
            is_soon = loop.time() < self._changed_at + CHANGE_EVERY
            if self._channel is not refusing or is_soon or self.blocked:
                return
            try:
                channel = await self._channels.to_publish()
            except BrokerError as error:
                refusing.fail(f"no other channel could be opened: {error}")
                return
            if self._channel is refusing:  # else the session has ended, and the channel with it
                self._channel, self._changed_at = self._on(channel), loop.time()
                self._retiring[refusing] = loop.create_task(self._retire(refusing))

    async def _retire(self, channel: PublishChannel) -> None:
        """Close a channel once whatever was published over it has its answer."""
        await channel.answered()
        del self._retiring[channel]
        await self._channels.let_go(channel.channel)
