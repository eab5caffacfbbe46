"""Confirmed publishing: a publish is done when every queue it was routed to has it, or it is not done.

The result is a value.  `Confirmed` is durable.  `Unconfirmed` means that nobody knows: the channel died,
the deadline passed, or the broker said no for too long; the session is then given up, so that the message
which led to this publish comes again.  That may double a delivery and never loses one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from service.broker.publishes import Answer, PublishChannel

MAX_UNCONFIRMED: Final = 512
NACK_PAUSE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has it, durably."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Nobody knows whether the broker has it."""

    detail: str


Published = Confirmed | Unconfirmed


class Publisher:
    """Publishes over the channel of the moment; `timeout` in seconds bounds the wait for a confirm.

    While the broker blocks publishers (a memory or disk alarm) the wait goes on beyond the timeout:
    giving up would only make the same work come again.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._room = asyncio.Semaphore(MAX_UNCONFIRMED)
        self._channel: PublishChannel | None = None
        self.blocked = False

    def use(self, channel: AbstractChannel, on_failure: Callable[[str], None]) -> None:
        """Publish over this channel, opened with confirms, from now on; nobody else may."""
        self.blocked = False
        self._channel = PublishChannel(channel, self._timeout, lambda: self.blocked, on_failure)

    def abandon(self) -> None:
        """Forget the channel: it is gone."""
        if self._channel is not None:
            self._channel.end("the session was given up")
        self._channel = None

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> Published:
        """Publish persistently, mandatory, and wait for the confirm.

        A nack (a queue that cannot take it now) is tried again until the timeout.
        """
        async with self._room:
            deadline = asyncio.get_running_loop().time() + self._timeout
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
                if asyncio.get_running_loop().time() > deadline:
                    channel.fail(f"{exchange!r} took no message for too long")
                    return Unconfirmed(channel.ended)
                await asyncio.sleep(NACK_PAUSE)
