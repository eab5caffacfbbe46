"""Watching: changed files become the current snapshot, without a restart.

Files are looked at, not subscribed to: that works on every file system, also where Kubernetes swaps
symlinks.  The laws here: a bad or half-written file never replaces a good snapshot; and no step of a
reload, in whichever thread, keeps the event loop waiting for long.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from service.clock import Clock, SystemClock
from service.subscriptions.files import Look, changed, look
from service.subscriptions.load import Reading, read
from service.subscriptions.memory import Memory
from service.subscriptions.pace import Pace, Step, hurry
from service.subscriptions.problems import SubscriptionsError
from service.subscriptions.snapshot import Changes, FilterReport, Snapshot, changes

_LOOKING_SHARE = 0.05  # of a core
_LONGEST_PAUSE = 30.0  # seconds, however much there is to look at
_MOST_WAITS = 20
_SWITCH_INTERVAL = 0.0005  # seconds for which the reading thread may keep the loop from running
_FREED_AT_ONCE = 1000
_RETRY = 10  # intervals, until it is tried again to read what could not be read


class SubscriptionWatcher:
    """Holds the current snapshot and replaces it when files change.

    `start` once, then `run` until cancelled.  Files are read in a thread; the callbacks run in the
    event loop.
    """

    def __init__(
        self,
        source: Path,
        *,
        allow_http: bool,
        environ: Mapping[str, str],
        on_loaded: Callable[[Snapshot, Changes], None],
        on_refused: Callable[[SubscriptionsError], None],
        on_undecided: FilterReport | None = None,
        interval: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        """Look every `interval` seconds, and a quarter of it longer until a change has settled.

        `on_refused` is called once for each change that is refused.  What could not be read, and may be
        later though it looks the same, is tried again every ten intervals.
        """
        self._source = source
        self._allow_http = allow_http
        self._environ = environ
        self._on_loaded = on_loaded
        self._on_refused = on_refused
        self._on_undecided = on_undecided
        self._interval = interval
        self._clock = clock or SystemClock()
        self._current: Snapshot | None = None
        self._memory = Memory()
        self._looks: Mapping[Path, Look | None] = {}
        self._retry_at = math.inf
        self._told = ""

    @property
    def current(self) -> Snapshot:
        """The last good snapshot."""
        if self._current is None:
            raise RuntimeError("start() has not returned yet")
        return self._current

    async def start(self) -> Snapshot:
        """Read for the first time; raises `SubscriptionsError`, since there is no good one yet."""
        reading = await asyncio.to_thread(self._read)
        if isinstance(reading.result, SubscriptionsError):
            raise reading.result
        await self._take(reading, anew=True)
        return self.current

    async def run(self) -> None:
        """Look for changes and take them up, for ever."""
        pause = self._interval
        while True:
            await asyncio.sleep(pause)
            started = self._clock.monotonic()
            different, looking = await asyncio.to_thread(_compare, self._looks)
            if different or started >= self._retry_at:
                await self._reload(anew=different)
            else:
                pause = _pause(self._interval, looking)

    async def _reload(self, *, anew: bool) -> None:
        await self._settled()
        async with _politely():
            reading = await asyncio.to_thread(self._read, Pace())
            if await asyncio.to_thread(changed, reading.looks):
                return  # written to while it was read: the next look finds the same change again
            await self._take(reading, anew=anew)

    async def _settled(self) -> None:
        """Wait until two looks agree: who truncates a file is about to write it."""
        for _ in range(_MOST_WAITS):
            seen = await asyncio.to_thread(_look_at, tuple(self._looks))
            await asyncio.sleep(self._interval / 4)
            if not await asyncio.to_thread(changed, seen):
                return

    def _read(self, step: Step = hurry) -> Reading:
        return read(
            self._source,
            allow_http=self._allow_http,
            environ=self._environ,
            on_undecided=self._on_undecided,
            clock=self._clock,
            before=self._memory,
            step=step,
        )

    async def _take(self, reading: Reading, *, anew: bool) -> None:
        """Take up a reading; not `anew`: nothing has changed, so the same refusal is not told twice."""
        self._looks = reading.looks
        self._retry_at = math.inf
        if isinstance(reading.result, SubscriptionsError):
            if reading.may_pass:
                self._retry_at = self._clock.monotonic() + _RETRY * self._interval
            told, self._told = self._told, str(reading.result)
            if anew or told != self._told:
                self._on_refused(reading.result)
            return
        found = await asyncio.to_thread(changes, self._current, reading.result)
        old: list[Iterable[object]] = [self._memory, self._current or ()]
        self._current, self._memory = reading.result, reading.memory
        self._on_loaded(reading.result, found)
        await asyncio.to_thread(_free, old)


@asynccontextmanager
async def _politely() -> AsyncIterator[None]:
    """Let threads give way to the event loop sooner than after the usual five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _free(old: list[Iterable[object]]) -> None:
    """Free, a few at a time, what only `old` still holds: all at once would hold up the loop."""
    step = Pace()
    while old:
        parts = list(old.pop())
        while parts:
            step()
            del parts[-_FREED_AT_ONCE:]


def _compare(looks: Mapping[Path, Look | None]) -> tuple[bool, float]:
    """Tell whether anything looks otherwise now, and the seconds of computing that looking took."""
    started = time.thread_time()
    different = changed(looks)
    return bool(different), time.thread_time() - started


def _pause(interval: float, looking: float) -> float:
    """Return the seconds until the next look: very many secret files must not keep a core busy."""
    return max(interval, min(looking / _LOOKING_SHARE, _LONGEST_PAUSE))


def _look_at(paths: tuple[Path, ...]) -> Mapping[Path, Look | None]:
    return {path: look(path) for path in paths}
