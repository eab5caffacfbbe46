"""Acks, in batches: what a lane owes the broker for the messages of one channel.

A batch is `multiple` up to the first unfinished tag; what is finished beyond an unfinished message is acked
one by one, some milliseconds later, so that one slow message never holds up the rest.  Not at once: most that
are in the way are only a publish behind, and each ack costs the broker as much as a batch does.

The law here: a message is settled once, on the channel it came from, and not at all when that is gone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from aiormq.abc import AbstractChannel

FLUSH_AFTER: Final = 0.004
FLUSH_COUNT: Final = 64
ALONE_AFTER: Final = 0.025
"""Seconds, or up to twice that, for which an ack waits behind an unfinished message."""
WAITING_SHARE: Final = 0.25
"""The share of the prefetch, less what is unfinished, that may wait so long; more goes at the next flush."""
HELD_BACK_FROM: Final = 32
"""Acks under way from which on RabbitMQ holds further ones back, and forgets them with their channel.

`SOFT_LIMIT` of its client for quorum queues.
"""
CATCHES_UP: Final = 1.0
"""Seconds in which RabbitMQ takes in what acks it has held back, once no more come."""


class Settler:
    """Acks the messages of one channel, in batches; `prefetch` is how many come over it unacked."""

    def __init__(
        self, channel: AbstractChannel, prefetch: int, on_failure: Callable[[str], None]
    ) -> None:
        self._channel = channel
        self._on_failure = on_failure
        self._prefetch = prefetch
        self._loop = asyncio.get_running_loop()
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._stragglers: set[int] = set()
        self._straggling_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._but = 0
        self._sent_at: deque[float] = deque(maxlen=HELD_BACK_FROM)
        self.closed = False
        self.alone = 0
        """How many acks were sent one by one, as an unfinished message was in the way."""

    @property
    def oldest(self) -> int | None:
        """Return the tag that has been unfinished for longest."""
        return self._open[0] if self._open else None

    @property
    def unfinished(self) -> int:
        """Return how many messages the broker has not been told about."""
        return len(self._open)

    def opened(self, tag: int) -> None:
        """Note a message in the order in which the broker sent it."""
        self._open.append(tag)

    def ack(self, tag: int) -> None:
        """Ack a message, soon."""
        if self.closed:
            return
        self._done.add(tag)
        if len(self._done) >= FLUSH_COUNT and self._open[0] in self._done:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)

    async def requeue(self, tag: int) -> None:
        """Give a message back to the broker, now."""
        if self.closed:
            return
        await self._channel.basic_nack(tag, requeue=True, wait=False)
        self._settled(tag)

    async def turn_away(self, tag: int) -> None:
        """Let the broker dead-letter a message, now."""
        if self.closed:
            return
        await self._channel.basic_reject(tag, requeue=False, wait=False)
        self._settled(tag)

    async def emptied(self, but: int = 0) -> None:
        """Wait until every message but so many is settled, and the last ack is on its way."""
        while len(self._open) > but and not self.closed:
            self._emptied, self._but = self._loop.create_future(), but
            await self._emptied
        if self._flushing is not None:
            await asyncio.wait([self._flushing])

    def close(self) -> None:
        """Settle nothing more: the channel is gone."""
        self.closed = True
        self._tell_if_emptied()

    def _tell_if_emptied(self) -> None:
        if self._emptied is not None and (self.closed or len(self._open) <= self._but):
            if not self._emptied.done():
                self._emptied.set_result(None)
            self._emptied = None

    def may_be_held_back(self, within: float) -> bool:
        """Tell whether so many acks were sent within the last seconds that the broker may have held some back."""
        sent = self._sent_at
        return len(sent) == sent.maxlen and self._loop.time() < sent[0] + within

    async def finish(self) -> None:
        """Send every ack that is due, and see it leave this process."""
        self._prefetch = 0  # nothing waits any longer
        while self._done and not self.closed:
            self._flush()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])

    def _settled(self, tag: int) -> None:
        """Forget a message whose settling is on its way.

        Not before: while its frame waits for room, an ack of all up to a later tag could overtake it
        and would ack this message too.
        """
        if not self.closed:
            self._open.remove(tag)
            self._tell_if_emptied()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None and not self._flushing.done():
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)
            return
        acks = [*self._prefix(), *self._beyond()]
        if acks:
            self._flushing = self._loop.create_task(self._send(acks))
        if self._done and self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)
        self._tell_if_emptied()

    def _prefix(self) -> list[tuple[int, bool]]:
        last, count = None, 0
        while self._open and self._open[0] in self._done:
            last = self._open.popleft()
            self._done.discard(last)
            self._stragglers.discard(last)
            count += 1
        return [] if last is None else [(last, count > 1)]

    def _beyond(self) -> list[tuple[int, bool]]:
        """Ack what has been waiting behind an unfinished message for long enough."""
        now = self._loop.time()
        may_wait = WAITING_SHARE * (self._prefetch - len(self._open) + len(self._done))
        if now < self._straggling_since + ALONE_AFTER and len(self._done) <= may_wait:
            return []
        self._straggling_since = now
        late = self._stragglers & self._done
        self._done -= late
        self._stragglers = set(self._done)
        if late:
            self.alone += len(late)
            self._open = deque(tag for tag in self._open if tag not in late)
        return [(tag, False) for tag in sorted(late)]

    async def _send(self, acks: list[tuple[int, bool]]) -> None:
        last = len(acks) - 1
        try:
            for place, (tag, multiple) in enumerate(acks):
                await self._channel.basic_ack(tag, multiple=multiple, wait=place == last)
                self._sent_at.append(self._loop.time())
        except asyncio.CancelledError:
            self._on_failure("the channel closed while acks were being sent")
        except Exception as error:  # noqa: BLE001 - the library raises bare exceptions on a dead channel
            self._on_failure(f"acks could not be sent: {type(error).__name__} {error}")
