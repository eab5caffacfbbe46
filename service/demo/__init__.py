"""The tour behind `webhook-dispatcher demo`: the real thing at work, for somebody who has never seen it.

    place        where it plays: a broker, names on it, a temporary folder
    scenery      the subscriptions
    receivers    the subscribers' side: servers that check every signature
    dispatcher   `webhook-dispatcher run` as a child process, its log lines as they come
    tour         one showing, from its first process to its last
    steps        what is shown, and what each step promises
    ledger       who was owed what, and who got it
    rows         log lines beside what the receivers saw
    screen       how it looks
    keeping      what stays up afterwards, if asked for

The law here: nothing is acted.  What is shown was logged, received or listed a moment before, and a
promise that is not kept ends the demo with exit status 1.  Nothing it started outlives it.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine, Mapping
from types import FrameType
from typing import Any, Self

from service.demo.place import open_place
from service.demo.screen import Screen
from service.demo.tour import Tour

_WELCOME = """Events go into RabbitMQ, and arrive at subscribed webhooks. Seven steps show how, and what
happens when something fails. Broker, dispatcher, receivers and events are real; it takes about half a
minute, and cleans up after itself."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(*, keep: bool) -> int:
    """Show the tour and return the exit status; with `keep`, stay up until Ctrl-C.

    To be called in the main thread.  Raises DispatcherError where something is missing (RabbitMQ is
    not installed, the broker does not answer) or a promise was not kept: a sentence for a person.
    """
    screen = Screen()
    screen.title("webhook-dispatcher demo")
    screen.tell(_WELCOME)
    screen.line()
    with _Interrupts() as interrupts:
        try:
            return _play(os.environ, screen, interrupts, keep=keep)
        except _Interrupted:
            screen.line("\nInterrupted. Everything that was started is stopped.")
            return 128 + interrupts.number


def _play(
    environ: Mapping[str, str], screen: Screen, interrupts: "_Interrupts", *, keep: bool
) -> int:
    with open_place(environ, screen) as where:
        try:
            asyncio.run(interrupts.watch(Tour(where, screen).run(keep=keep)))
        finally:
            interrupts.ignore()
    return 0


class _Interrupted(BaseException):
    """Somebody asked the program to end."""


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP: the first is an exception, or a cancellation while a loop runs.

    Those after it are ignored: clearing away takes a moment, and must not be broken off.
    """

    def __init__(self) -> None:
        self.number = int(signal.SIGINT)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        hang_up = signal.getsignal(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        if hang_up is signal.SIG_IGN:
            signal.signal(signal.SIGHUP, hang_up)  # started by nohup, to outlive the terminal
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Hear no more of them."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    async def watch(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work as the task that a signal cancels."""
        self._task = asyncio.current_task()
        try:
            await work
        except asyncio.CancelledError:
            raise _Interrupted from None
        finally:
            self._task = None

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        self.ignore()
        self.number = number
        if self._task is None:
            raise _Interrupted
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)
