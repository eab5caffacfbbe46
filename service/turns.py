"""Work that gives way: a few pieces of it in each turn of the event loop, the rest in those that follow.

What is put off need not be put off at once, and it comes in bursts: a target that is found to be slow turns
all away that wait for it.  A burst that is published in one turn keeps requests of others waiting for as long
as it takes.
"""

import asyncio
from collections import deque
from typing import Final

AT_ONCE: Final = 4
"""Pieces in a turn, as long as few wait."""
SHARE: Final = 8
"""One piece of so many that wait goes on in a turn: where turns are long, the line still does not grow."""


class Turns:
    """Lets pieces of work go on in the order in which they came, a few in each turn of the event loop."""

    __slots__ = ("_is_due", "_passed", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._passed = 0
        self._is_due = False

    async def turn(self) -> None:
        """Return when it is this piece's turn: now, where only a few came before in this turn of the loop."""
        loop = asyncio.get_running_loop()
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._next)
        if self._passed < AT_ONCE:  # then nobody waits
            self._passed += 1
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        """Begin another turn of the loop."""
        self._passed = 0
        most = max(AT_ONCE, len(self._waiting) // SHARE)
        while self._waiting and self._passed < most:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)
                self._passed += 1
        self._is_due = self._passed > 0
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._next)
