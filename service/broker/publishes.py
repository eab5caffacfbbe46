"""Publishes are written to the connection past the library, and the broker's answers taken off it.

The library spends more on a publish than on an HTTP request: it holds a lock while it waits for the
connection's buffer, passes frames through a queue and a task, and the answer through two more.  Here a
publish is one write and one future.  Both ends are what `FrameTransport` gives the library as well: the
stream's writer, which takes whole frames from both, and the reader, which keeps the answers.

The law here: each publish is answered once.  Taken means that every queue has it; when the channel ends,
or anything is returned, nobody knows of any that is still unanswered.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import takewhile
from typing import Final

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from service.broker.frames import streams_of
from service.broker.wire import body_frames, head_frames

BUFFERED: Final = 65_536
"""Bytes that wait to be sent, above which the next publish waits here instead."""


class Answer(Enum):
    """What the broker said of a publish."""

    TAKEN = auto()
    """Every queue that it was routed to has it, durably."""
    REFUSED = auto()
    """A queue cannot take it now: a nack."""
    UNKNOWN = auto()
    """Nobody knows, nor ever will."""


class Alarm:
    """Whether the broker takes no publishes now, and when it last did not; needs a running loop to change."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lasted = 0.0
        self.over_at = float("-inf")
        """When the last one ended, by the loop's clock."""

    @property
    def is_up(self) -> bool:
        """Whether there is one now."""
        return self._since is not None

    def note(self, *, is_up: bool) -> None:
        """Take in whether there is one now."""
        now = _now()
        if is_up and self._since is None:
            self._since = now
        elif not is_up and self._since is not None:
            self._lasted += now - self._since
            self._since, self.over_at = None, now

    def quiet_time(self) -> float:
        """Return seconds by a clock that stands still while there is one."""
        now = _now()
        return now - self._lasted - (0.0 if self._since is None else now - self._since)


@dataclass(slots=True, eq=False)
class _Publish:
    """A publish without an answer, since `since` by the loop's clock."""

    answer: "asyncio.Future[Answer]"
    since: float


class PublishChannel:
    """A channel with confirms, which nobody else publishes on: the broker counts publishes, and so do we.

    `on_failure` is called once, with the reason, when publishes can no longer be told apart from lost
    ones: one was returned, or was not answered for `timeout` seconds without an alarm, counted anew from the end of one.

    `gather` is for how many seconds a publish waits for others, to leave with them: what comes together
    costs RabbitMQ less, here and at each level of the delay ladder.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        timeout: float,
        alarm: Alarm,
        on_failure: Callable[[str], None],
        gather: float = 0.0,
    ) -> None:
        self.channel = channel
        self._number = channel.number
        self._frame_max = channel.connection.connection_tune.frame_max or 0
        self._timeout = timeout
        self._alarm = alarm
        self._on_failure = on_failure
        self._gather = gather
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = streams_of(channel.connection)
        self._last = 0
        self._unanswered: dict[int, _Publish] = {}
        self._unsent: deque[tuple[_Publish, bytes, bytes]] = deque()
        self._is_due = False
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_ended = False
        self.ended = ""
        """Why nothing more is published here."""
        self._reader.answers[self._number] = self
        channel.closing.add_done_callback(self._closed)

    def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Future[Answer]":
        """Publish, mandatory, and return the answer to come.  Raises what it likes for what cannot be encoded."""
        head = head_frames(self._number, exchange, routing_key, properties, len(body))
        publish = _Publish(self._loop.create_future(), _now())
        if self._is_ended:
            publish.answer.set_result(Answer.UNKNOWN)
            return publish.answer
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._look)
        self._unsent.append((publish, head, body))
        if not self._is_due:
            # Not now: what else is published in this turn of the loop, at the least, leaves with it.
            self._is_due = True
            self._loop.call_later(self._gather, self._flush)
        return publish.answer

    async def answered(self) -> None:
        """Wait until everybody who has published has an answer."""
        while open_ones := [one.answer for one in self._waiting if not one.answer.done()]:
            await asyncio.wait(open_ones)

    @property
    def _waiting(self) -> tuple[_Publish, ...]:
        return (*self._unanswered.values(), *(publish for publish, *_ in self._unsent))

    def settled(self, tag: int, *, multiple: bool, taken: bool) -> None:
        """Take in an ack or a nack; a tag that is not known has been given up."""
        answer = Answer.TAKEN if taken else Answer.REFUSED
        in_order = takewhile(lambda one: one <= tag, self._unanswered)
        for one in list(in_order) if multiple else [tag]:
            publish = self._unanswered.pop(one, None)
            if publish is not None and not publish.answer.done():
                publish.answer.set_result(answer)

    def returned(self, exchange: str) -> None:
        """Take in that a publish found no queue; its ack follows, and must not count."""
        self.fail(f"{exchange!r} has no queue for a message: topology is missing")

    def fail(self, reason: str) -> None:
        """End, and tell of it."""
        if not self._is_ended:
            self.end(reason)
            self._on_failure(reason)

    def end(self, reason: str) -> None:
        """Publish nothing more; what is unanswered never will be."""
        if self._is_ended:
            return
        self._is_ended, self.ended = True, reason
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()
        for publish in self._waiting:
            if not publish.answer.done():
                publish.answer.set_result(Answer.UNKNOWN)
        self._unanswered.clear()
        self._unsent.clear()

    def _closed(self, _: "asyncio.Future[object]") -> None:
        # Not before: what the broker still says of publishes is nothing that the library would know of.
        self._reader.forget_answers(self._number, self)
        self.end("the channel closed before a confirm")

    def _flush(self) -> None:
        self._is_due = False
        if self._sending is not None or self._is_ended:
            return
        try:
            self._send_some()
        except Exception as error:  # noqa: BLE001 - a closed connection raises what its loop likes
            self.fail(_text(error))
        else:
            if self._writer.transport.get_write_buffer_size() > BUFFERED or self._unsent:
                self._sending = self._loop.create_task(self._send_the_rest())

    def _send_some(self) -> None:
        """Write what there is, about as much as fits, in one piece: no frame of another comes between."""
        pieces: list[bytes] = []
        size = 0
        while self._unsent and size < BUFFERED:
            publish, head, body = self._unsent.popleft()
            if publish.answer.done():
                continue  # nobody waits for it any longer, and it was not sent
            self._last += 1
            self._unanswered[self._last] = publish
            pieces += (head, *body_frames(self._number, body, self._frame_max))
            size += len(head) + len(body)
        self._writer.write(b"".join(pieces))

    async def _send_the_rest(self) -> None:
        """Write what waits, and what comes meanwhile, whenever there is room for it."""
        try:
            await self._writer.drain()
            while self._unsent:
                self._send_some()
                await self._writer.drain()
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(_text(error))
        finally:
            self._sending = None

    def _look(self) -> None:
        """Look for publishes that the broker has left unanswered for too long: one timer for all."""
        now = _now()
        oldest = min((p.since for p in self._waiting if not p.answer.done()), default=None)
        self._timer = None
        if oldest is None:
            return
        # After an alarm the broker has time for those of before.
        since = now if self._alarm.is_up else max(oldest, self._alarm.over_at)
        due = since + self._timeout
        if due <= now:
            self.fail("a publish was not confirmed in time")
        else:
            self._timer = self._loop.call_at(due, self._look)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _text(error: Exception) -> str:
    return f"a publish failed: {type(error).__name__} {error}"
