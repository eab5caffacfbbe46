"""Several processes on one machine, for a person with a large one and no orchestrator.

The workers share nothing but the broker.  This process consumes nothing: it starts them, starts a dead
one again, passes SIGTERM on, and answers on the one admin port for all of them.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from service.admin import AdminPages, admin_port
from service.clock import Clock, SystemClock
from service.errors import ConfigurationError
from service.log import LAST_LINES, LineSink, Log, configure, rfc3339
from service.settings import PREFIX, Settings
from service.signals import stop_signal

RESTART_FIRST: Final = 0.5
RESTART_MAX: Final = 30.0
STEADY_AFTER: Final = 60.0
"""Seconds after which a worker counts as having started well."""
GRACE: Final = 14.0
"""Seconds beyond its drain that a worker has to end: it takes 13 where the broker no longer answers."""
BAD_CONFIGURATION: Final = 2
"""The exit status of a worker whose settings or files are wrong."""
ASK_TIMEOUT: Final = 3.0


class Worker:
    """One child process, with a listening socket of its own for its admin port.

    It holds the reading end of a pipe whose writing end is ours: when this process dies, it drains.
    """

    def __init__(self, number: int, environ: Mapping[str, str]) -> None:
        self.number = number
        self._environ = environ
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._process: asyncio.subprocess.Process | None = None
        self._unwanted = False
        self.starts = 0
        self.deaths = 0

    @property
    def url(self) -> str:
        """Return where its admin port is."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def run_once(self) -> int:
        """Start the process and wait for its end; returns its exit status.

        Raises OSError where it cannot be started: the machine has no room for it.
        """
        reader, lifeline = os.pipe()
        try:
            descriptors = (self._socket.fileno(), reader)
            arguments = ("--admin-fd", str(descriptors[0]), "--lifeline-fd", str(reader))
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service", "run", *arguments),
                env=self._environ,
                pass_fds=descriptors,
            )
            self.starts += 1
            if self._unwanted:  # told to end while it was being started
                self._process.terminate()
            return await self._process.wait()
        finally:
            os.close(reader)
            os.close(lifeline)

    def terminate(self) -> None:
        """Ask it to drain, for good."""
        self._unwanted = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def close(self) -> None:
        """Give its port back."""
        self._socket.close()


class Workers:
    """The workers of one machine."""

    def __init__(
        self, count: int, settings: Settings, environ: Mapping[str, str], log: Log, clock: Clock
    ) -> None:
        told = {**environ, f"{PREFIX}REPLICAS": str(settings.replicas * count)}
        self._workers = [Worker(number, told) for number in range(count)]
        self._settings = settings
        self._log = log
        self._clock = clock
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Keep the workers running until a signal says stop; then drain them all."""
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signal())
            session = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT))
            )
            pages = _Together(self._workers, session)
            await stack.enter_async_context(
                admin_port(self._settings.admin_host, self._settings.admin_port, pages)
            )
            keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([*keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            self._stop.set()
            for worker in self._workers:
                worker.terminate()
            await asyncio.wait(keeping, timeout=self._settings.drain_timeout + GRACE)
            for worker in self._workers:
                worker.kill()
            refused = any(await asyncio.gather(*keeping))
        for worker in self._workers:
            worker.close()
        if refused:
            raise ConfigurationError("the workers cannot start; they have said why")

    async def _keep(self, worker: Worker) -> bool:
        """Start the worker, and start it again whenever it ends; True when it can never start."""
        pause, first = RESTART_FIRST, True
        while not self._stop.is_set():
            started = self._clock.monotonic()
            status, error = await _end_of(worker)
            if first and status == BAD_CONFIGURATION:
                return True
            first = first and status is None
            if self._stop.is_set():
                break
            if self._clock.monotonic() - started > STEADY_AFTER:
                pause = RESTART_FIRST
            worker.deaths += 1
            self._log.error(
                "worker.died",
                worker=worker.number,
                status=status,
                error=error,
                next_attempt_at=rfc3339(self._clock.now() + pause),
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause = min(pause * 2, RESTART_MAX)
        return False


async def _end_of(worker: Worker) -> tuple[int | None, str | None]:
    """Run a worker once; returns its exit status, or none and why it could not be started."""
    try:
        return await worker.run_once(), None
    except OSError as error:
        return None, f"it cannot be started: {error.strerror or error}"


class _Together(AdminPages):
    """The admin pages of all workers, added up."""

    def __init__(self, workers: Sequence[Worker], session: aiohttp.ClientSession) -> None:
        self._workers = workers
        self._urls = [worker.url for worker in workers]
        self._session = session
        self._counts = [Counts() for _ in workers]

    async def not_ready(self) -> list[str]:
        """Return what the workers still wait for; ready when all are."""
        answers = await asyncio.gather(*(self._ask(url, "/readyz") for url in self._urls))
        return [
            f"worker {number}: {body.decode().strip() or 'does not answer'}"
            for number, (status, body) in enumerate(answers)
            if status != 200
        ]

    async def metrics(self) -> bytes:
        """Return the sums of the workers' metrics, and how often one of them died."""
        starts = [worker.starts for worker in self._workers]
        answers = await asyncio.gather(*(self._ask(url, "/metrics") for url in self._urls))
        told = zip(self._workers, self._counts, starts, answers, strict=True)
        for worker, counts, start, (status, body) in told:
            # Started again meanwhile: nobody knows which of the two processes has answered.
            if status == 200 and worker.starts == start:
                counts.read(body.decode(), start)
            elif status != 200:
                counts.miss()
        deaths = sum(worker.deaths for worker in self._workers)
        return add_up(self._counts) + _DEATHS.format(deaths).encode()

    async def status(self) -> dict[str, Any]:
        """Return each worker's status."""
        answers = await asyncio.gather(*(self._ask(url, "/status") for url in self._urls))
        told = [orjson.loads(body) if status == 200 else None for status, body in answers]
        return {"ready": all(one and one["ready"] for one in told), "workers": told}

    async def _ask(self, url: str, path: str) -> tuple[int, bytes]:
        try:
            async with self._session.get(url + path) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            return 0, b""


CONNECTED: Final = "webhook_dispatcher_broker_connected"

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""


class Counts:
    """One worker's metrics, which go on from where they were when it is started again.

    Without that the sums would fall with it, and Prometheus would count everything once more.
    """

    def __init__(self) -> None:
        self.families: dict[str, tuple[str, str]] = {}
        self._start = 0
        self._now: dict[str, dict[Key, float]] = {}
        self._before: dict[str, dict[Key, float]] = {}

    def read(self, page: str, start: int) -> None:
        """Take in a page in Prometheus' text format, of the worker's process with this number."""
        if start != self._start:
            self._start = start
            self._keep()
        self._now = {}
        for family in text_string_to_metric_families(page):
            self.families[family.name] = (family.documentation, family.type)
            self._now[family.name] = {
                (sample.name, tuple(sample.labels.items())): float(sample.value)
                for sample in family.samples
            }

    def miss(self) -> None:
        """Take in that the worker does not answer: what it told of itself holds no longer, and it may be cut off."""
        for name, samples in self._now.items():
            if self.families[name][1] == "gauge":
                self._now[name] = dict.fromkeys(samples, 0.0) if name == CONNECTED else {}

    def samples(self, family: str) -> Iterator[tuple[Key, float]]:
        """Give the values of a family, also those that the process of now does not tell (yet)."""
        now, before = self._now.get(family, {}), self._before.get(family, {})
        for key in {**before, **now}:
            yield key, now.get(key, 0.0) + before.get(key, 0.0)

    def _keep(self) -> None:
        """Add what the process before has counted to what those before it had; a gauge ends with its process."""
        for name, samples in self._now.items():
            if self.families[name][1] != "gauge":
                before = self._before.setdefault(name, {})
                for key, value in samples.items():
                    before[key] = before.get(key, 0.0) + value


def add_up(workers: Sequence[Counts]) -> bytes:
    """Return one page of metrics in Prometheus' text format: each sample is the sum over the workers.

    Except where all workers tell of the same thing: then the worst value stands for all.
    """
    families = {name: head for counts in workers for name, head in counts.families.items()}
    lines = []
    for name, (documentation, kind) in families.items():
        full = f"{name}_total" if kind == "counter" else name
        lines += [f"# HELP {full} {documentation}", f"# TYPE {full} {kind}"]
        values: dict[Key, list[float]] = {}
        for counts in workers:
            for key, value in counts.samples(name):
                values.setdefault(key, []).append(value)
        for (sample, labels), told in values.items():
            if not sample.endswith("_created"):
                joined = _JOINED.get(name, sum)(told)
                lines.append(f"{sample}{_labels(labels)} {joined}")
    return "\n".join([*lines, ""]).encode()


_JOINED: Final[Mapping[str, Callable[[list[float]], float]]] = {
    CONNECTED: min,
    "webhook_dispatcher_broker_blocked": max,
    "webhook_dispatcher_unrouted_messages": max,
    "webhook_dispatcher_dead_letters_waiting": max,
    "webhook_dispatcher_rejected_events_waiting": max,
    "webhook_dispatcher_subscriptions": max,
    "webhook_dispatcher_subscriptions_stale": max,
    "webhook_dispatcher_subscriptions_refused": max,
    "webhook_dispatcher_target_ejected_seconds": max,
    "webhook_dispatcher_draining_seconds": max,
}


_DEATHS: Final = (
    "# HELP webhook_dispatcher_worker_deaths_total Workers that ended by themselves.\n"
    "# TYPE webhook_dispatcher_worker_deaths_total counter\n"
    "webhook_dispatcher_worker_deaths_total {:.1f}\n"
)


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


async def run_workers(count: int, settings: Settings, environ: Mapping[str, str]) -> None:
    """Run so many dispatcher processes until told to stop.  Raises ConfigurationError at the start."""
    if count < 1:
        raise ConfigurationError("--workers: give a number from 1 on")
    sink = LineSink(1)
    sink.attach(asyncio.get_running_loop())
    log = configure(settings.log_level, settings.log_format, sink)
    log.info("workers.started", workers=count, pid=os.getpid())
    try:
        await Workers(count, settings, environ, log, SystemClock()).run()
        log.info("workers.stopped", workers=count)
    finally:
        sink.close(LAST_LINES)
