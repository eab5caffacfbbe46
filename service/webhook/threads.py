"""Calls that may hang, each in a thread of its own.

The shared pools (four threads in uvloop, a few in asyncio) would let some that hang hold up all others.
These threads are daemons: the exit does not wait for them.
"""

import asyncio
import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


async def in_own_thread(call: Callable[..., _T], *arguments: Any) -> _T:
    """Return what a call returns, or raise what it raises; `OSError` where no thread is to be had.

    Who is cancelled leaves the call to end by itself.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_T] = loop.create_future()
    thread = threading.Thread(target=_call, args=(loop, ended, call, arguments), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.ENOMEM, "no thread to be had") from error
    return await ended


def _call(
    loop: asyncio.AbstractEventLoop,
    ended: "asyncio.Future[_T]",
    call: Callable[..., _T],
    arguments: tuple[Any, ...],
) -> None:
    try:
        settle = partial(_return, ended, call(*arguments))
    except Exception as error:  # noqa: BLE001 - it is raised where the call is awaited
        settle = partial(_raise, ended, error)
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(settle)


def _return(ended: "asyncio.Future[_T]", value: _T) -> None:
    if not ended.done():
        ended.set_result(value)


def _raise(ended: "asyncio.Future[_T]", error: Exception) -> None:
    if not ended.done():
        ended.set_exception(error)
