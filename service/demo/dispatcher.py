"""`webhook-dispatcher run` as a child process, its log lines taken as they come.

It is in a process group of its own, so that Ctrl-C reaches the demo alone, which then ends it in order; where
the demo itself is killed, a watchdog ends it.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import orjson

from service.demo.place import CODE, DemoFailed, Place
from service.watchdog import Watchdog

START_TIMEOUT: Final = 30.0
STEP_TIMEOUT: Final = 15.0
END_TIMEOUT: Final = 30.0
_POLL: Final = 0.01
_LINE_LIMIT: Final = 1 << 20

Line = dict[str, Any]


class Dispatcher:
    """A running dispatcher; `lines` are its log lines, `raw` the same as they were written."""

    def __init__(
        self, place: Place, environ: Mapping[str, str], on_line: Callable[[Line], None]
    ) -> None:
        self.lines: list[Line] = []
        self.raw: list[str] = []
        self._place = place
        self._environ = {**place.environ, **environ}
        self._on_line = on_line
        self.process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def of(self, message: str, **fields: Any) -> list[Line]:
        """Return the log lines of one kind with these fields."""
        return [
            line
            for line in self.lines
            if line["message"] == message
            and all(line.get(name) == value for name, value in fields.items())
        ]

    async def until(
        self, condition: Callable[[], object], what: str, seconds: float = STEP_TIMEOUT
    ) -> None:
        """Wait for a condition; raises DemoFailed after a deadline, or when the dispatcher has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._reading.done() and not condition():
                self._reading.result()
                raise DemoFailed(f"the dispatcher ended while the demo waited for {what}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{what} did not happen within {seconds:g} s")
            await asyncio.sleep(_POLL)

    async def line(self, message: str, count: int = 1, **fields: Any) -> Line:
        """Wait for so many log lines of one kind and return the last of them."""
        what = " ".join([f"{count} x {message}", *(f"{k}={v}" for k, v in fields.items())])
        await self.until(lambda: len(self.of(message, **fields)) >= count, what)
        return self.of(message, **fields)[-1]

    def send_sigterm(self) -> None:
        """Ask it to drain and end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Return the exit status once it has ended and every line was read; raises DemoFailed."""
        try:
            async with asyncio.timeout(END_TIMEOUT):
                status = await self.process.wait()
                await self._reading
        except TimeoutError:
            raise DemoFailed(f"the dispatcher did not end within {END_TIMEOUT:g} s") from None
        return status

    def last_words(self) -> str:
        """Return the end of what it wrote, for a person who looks for the cause."""
        errors = (self._place.folder / "dispatcher.err").read_text(errors="replace")
        return "\n".join([*self.raw[-10:], *errors.splitlines()[-20:]])

    async def launch(self) -> None:
        """Start the process."""
        with (self._place.folder / "dispatcher.err").open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service", "run"),
                cwd=CODE,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LINE_LIMIT,
                process_group=0,
            )
        self._reading = asyncio.create_task(self._read())

    async def end(self) -> None:
        """Make sure that the process is gone: in order, by force after a deadline."""
        self.send_sigterm()
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it was opened as a pipe
        with self._place.log_file.open("ab", buffering=0) as log:
            async for line in self.process.stdout:
                log.write(line)
                self.raw.append(line.decode().rstrip())
                told = orjson.loads(line)
                self.lines.append(told)
                self._on_line(told)


@asynccontextmanager
async def running(
    place: Place, environ: Mapping[str, str], on_line: Callable[[Line], None]
) -> AsyncIterator[Dispatcher]:
    """Give a dispatcher that consumes, and make sure that it is gone afterwards."""
    dispatcher = Dispatcher(place, environ, on_line)
    with Watchdog() as watchdog:
        watchdog.remove(place.folder)
        await dispatcher.launch()
        watchdog.watch(dispatcher.pid)
        try:
            await dispatcher.until(
                lambda: dispatcher.of("broker.connected"), "the dispatcher's start", START_TIMEOUT
            )
            yield dispatcher
        except DemoFailed as failure:
            raise DemoFailed(
                f"{failure}\nThe dispatcher's last words:\n{dispatcher.last_words()}"
            ) from None
        finally:
            await dispatcher.end()
            watchdog.forget(dispatcher.pid)
