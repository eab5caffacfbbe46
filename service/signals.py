"""Signals as an event to wait for."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signal(lifeline: int | None = None) -> Iterator[asyncio.Event]:
    """Give an event that SIGTERM and SIGINT set; a second SIGINT ends the process at once.

    `lifeline` is the reading end of a pipe: the event is set, too, when its other end is gone.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set() and number is signal.SIGINT:
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        stop.set()

    def on_lifeline() -> None:
        loop.remove_reader(lifeline)  # type: ignore[arg-type]  # only registered where there is one
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if lifeline is not None:
        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, on_lifeline)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if lifeline is not None:
            loop.remove_reader(lifeline)
