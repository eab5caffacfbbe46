"""Confirmed publishing: a publish is done when every queue it was routed to has it, or it is not done.

The result is a value.  `Confirmed` is durable.  `Unconfirmed` means that nobody knows: the channel died,
the deadline passed, or the broker said no for too long; the session is then given up, so that the message
which led to this publish comes again.  That may double a delivery and never loses one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiormq.abc import AbstractChannel, ConfirmationFrameType
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

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
        self._channel: AbstractChannel | None = None
        self._on_failure: Callable[[str], None] = _ignore
        self.blocked = False

    def use(self, channel: AbstractChannel, on_failure: Callable[[str], None]) -> None:
        """Publish over this channel, opened with confirms, from now on."""
        self._channel, self._on_failure = channel, on_failure
        self.blocked = False

    def abandon(self) -> None:
        """Forget the channel: it is gone."""
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
                result = await self._once(channel, exchange, routing_key, body, properties)
                if result is not None:
                    return result
                if asyncio.get_running_loop().time() > deadline:
                    return self._failed(channel, f"{exchange!r} took no message for too long")
                await asyncio.sleep(NACK_PAUSE)

    async def _once(
        self,
        channel: AbstractChannel,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Basic.Properties,
    ) -> Published | None:
        """Publish once; None when the broker said no and may say yes later."""
        publishing = asyncio.get_running_loop().create_task(
            channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=True,
            )
        )
        try:
            while not (await asyncio.wait([publishing], timeout=self._timeout))[0]:
                if not self.blocked:
                    return self._failed(channel, "a publish was not confirmed in time")
        finally:
            publishing.cancel()
        return self._result(publishing, channel, exchange)

    def _result(
        self,
        publishing: "asyncio.Task[ConfirmationFrameType | None]",
        channel: AbstractChannel,
        exchange: str,
    ) -> Published | None:
        if publishing.cancelled():
            return self._failed(channel, "the channel closed before a confirm")
        match publishing.exception():
            case None:
                return Confirmed()
            case DeliveryError() as error if not isinstance(error, PublishError):
                return None
            case PublishError():
                return self._failed(
                    channel, f"{exchange!r} has no queue for a message: topology is missing"
                )
            case error:
                return self._failed(channel, f"a publish failed: {type(error).__name__} {error}")

    def _failed(self, channel: AbstractChannel, detail: str) -> Unconfirmed:
        if channel is self._channel:
            self._on_failure(detail)
        return Unconfirmed(detail)


def _ignore(_: str) -> None:
    """Stand in until there is a session to give up."""
