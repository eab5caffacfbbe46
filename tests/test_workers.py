"""Several workers on one machine: one port for all, a dead one comes back, SIGTERM drains them."""

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import structlog

from service import workers
from service.clock import SystemClock
from service.log import LineSink, configure
from service.ports import free_port
from service.publish import Publisher
from service.settings import Settings
from service.workers import Counts, add_up
from tests.dispatcher import Dispatcher, Station, station, subscription, validate_line
from tests.receivers import Answer, Recorder
from tests.sending import until


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def started(it: Station, *subscriptions: dict[str, Any]) -> Dispatcher:
    dispatcher = it.new(*subscriptions, INTAKE_PREFETCH="10")
    dispatcher.arguments = ("--workers", "2")
    return await dispatcher.start()


async def publish(it: Station, count: int) -> list[str]:
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        jobs = [publisher.publish("order.shipped", {"n": n}) for n in range(count)]
        return list(await asyncio.gather(*jobs))


def pids(dispatcher: Dispatcher) -> list[int]:
    return [line["pid"] for line in dispatcher.of("service.started")]


async def test_the_work_is_shared_and_the_one_port_adds_it_up(it):
    async with Recorder(answer=lambda _: Answer(delay=0.02)) as receiver:
        dispatcher = await started(it, subscription("s", receiver.url))
        await publish(it, 100)
        await receiver.wait_for(100, 20)
        await dispatcher.line("attempt.succeeded", 100)
        _, metrics = await dispatcher.get("/metrics")
        _, status = await dispatcher.get("/status")
        assert await dispatcher.stop() == 0
    assert 'webhook_dispatcher_attempts_total{lane="intake",outcome="2xx"} 100.0' in metrics
    workers = json.loads(status)["workers"]
    assert len(workers) == 2
    assert all(worker["targets"] for worker in workers)
    assert len(dispatcher.of("service.stopped")) == 2


async def test_a_killed_worker_is_started_again_and_nothing_is_lost(it):
    async with Recorder(answer=lambda _: Answer(delay=0.02)) as receiver:
        dispatcher = await started(it, subscription("s", receiver.url))
        ids = await publish(it, 200)
        await receiver.wait_for(20, 20)
        os.kill(pids(dispatcher)[0], signal.SIGKILL)
        died = await dispatcher.line("worker.died")
        assert died["status"] == -signal.SIGKILL
        assert (
            "\nwebhook_dispatcher_worker_deaths_total 1.0\n"
            in (await dispatcher.get("/metrics"))[1]
        )
        await dispatcher.until(lambda: len(pids(dispatcher)) == 3)
        await dispatcher.until(dispatcher.is_ready)
        await dispatcher.until(
            lambda: {r.headers["webhook-id"] for r in receiver.requests} == set(ids)
        )
        assert await dispatcher.stop() == 0


async def test_a_worker_that_a_fault_ends_is_told_to_have_failed(it):
    it.begin_with(
        "import service.clock\nasync def run(self): 1 / 0\nservice.clock.WakingClock.run = run\n"
    )
    dispatcher = it.new(subscription("s", "http://127.0.0.1:9/"))
    dispatcher.arguments = ("--workers", "2")
    await dispatcher.launch()
    assert (await dispatcher.line("worker.died"))["status"] == 1
    assert await dispatcher.stop() == 0


async def test_sigterm_ends_the_pause_before_a_worker_is_started_again(monkeypatch, tmp_path):
    died = asyncio.Event()

    async def dies(_: workers.Worker) -> int:
        died.set()
        return 1

    monkeypatch.setattr(workers.Worker, "run_once", dies)
    monkeypatch.setattr(workers, "RESTART_FIRST", 600.0)
    monkeypatch.setattr(workers, "GRACE", 600.0)
    settings = Settings.load({"DISPATCHER_ADMIN_PORT": str(free_port())})
    pool = workers.Workers(2, settings, {}, structlog.get_logger(), SystemClock())
    running = asyncio.create_task(pool.run())
    await asyncio.wait_for(died.wait(), 10)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 10)


class Process:
    """A worker's process that ends when it is told to."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def terminate(self) -> None:
        self.returncode = 0
        self._ended.set()

    kill = terminate

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_a_worker_that_cannot_be_started_is_told_and_tried_again_and_ends_no_other(
    monkeypatch, tmp_path
):
    processes: list[Process] = []
    starts = 0

    async def start(*_: str, **__: Any) -> Process:
        nonlocal starts
        starts += 1
        if starts in {1, 3}:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        processes.append(Process())
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(workers, "RESTART_FIRST", 0.001)
    settings = Settings.load({"DISPATCHER_ADMIN_PORT": str(free_port())})
    path = tmp_path / "log"
    with path.open("wb") as file:
        log = configure("info", "json", LineSink(file.fileno()))
        before = descriptors()
        pool = workers.Workers(2, settings, {}, log, SystemClock())
        running = asyncio.create_task(pool.run())
        await until(lambda: len(processes) == 2 or running.done())
        assert [process.returncode for process in processes] == [None, None]
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 10)
        left = descriptors()
    told = [validate_line(line) for line in path.read_text().splitlines()]
    assert [(line["message"], line["worker"], line["status"]) for line in told] == [
        ("worker.died", 0, None),
        ("worker.died", 0, None),
    ]
    assert told[0]["error"] == "it cannot be started: Resource temporarily unavailable"
    assert left == before


async def test_workers_drain_when_the_process_that_started_them_is_gone(it):
    async with Recorder() as receiver:
        dispatcher = await started(it, subscription("s", receiver.url))
        workers = pids(dispatcher)
        await dispatcher.stop(signal.SIGKILL)
    assert len(dispatcher.of("service.stopped")) == 2
    await dispatcher.until(lambda: all(map(has_ended, workers)))


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_rate_limit_is_divided_among_the_workers(it):
    async with Recorder() as receiver:
        dispatcher = await started(it, subscription("s", receiver.url))
    assert [line["settings"]["replicas"] for line in dispatcher.of("service.started")] == [2, 2]


def page(value: float, connected: float = 1.0) -> str:
    return (
        "# HELP webhook_dispatcher_a_total Help.\n# TYPE webhook_dispatcher_a_total counter\n"
        f'webhook_dispatcher_a_total{{x="1"}} {value}\n'
        "# HELP webhook_dispatcher_broker_connected Help.\n"
        "# TYPE webhook_dispatcher_broker_connected gauge\n"
        f"webhook_dispatcher_broker_connected {connected}\n"
    )


def test_metrics_are_summed_by_name_and_labels_and_the_worst_stands_for_all():
    workers = [Counts(), Counts()]
    workers[0].read(page(1.0), 1)
    workers[1].read(page(2.0, connected=0.0), 1)
    told = add_up(workers).decode()
    assert 'webhook_dispatcher_a_total{x="1"} 3.0' in told
    assert "\nwebhook_dispatcher_broker_connected 0.0" in told


def gauge(name: str, kind: str, *values: float) -> list[Counts]:
    """Return what workers tell with these values."""
    workers = []
    for value in values:
        workers.append(Counts())
        full = f"webhook_dispatcher_{name}"
        head = f"# HELP {full} Help.\n# TYPE {full} {kind}\n"
        workers[-1].read(f"{head}{full} {value}\n", 1)
    return workers


@pytest.mark.parametrize(
    ("name", "kind", "joined"),
    [
        ("subscriptions_stale", "gauge", 3.0),
        ("subscriptions_refused_total", "counter", 3.0),
        ("target_ejected_seconds", "gauge", 3.0),
        ("draining_seconds", "gauge", 3.0),
        ("log_lines_total", "counter", 4.0),
        ("faults_total", "counter", 4.0),
    ],
)
def test_what_all_workers_tell_of_the_same_thing_is_told_once(name, kind, joined):
    told = add_up(gauge(name, kind, 3.0, 1.0)).decode()
    assert f"\nwebhook_dispatcher_{name} {joined}\n" in told


A = 'webhook_dispatcher_a_total{x="1"}'


def test_a_sum_does_not_fall_when_a_worker_starts_again():
    worker = Counts()
    for start, value in enumerate((5.0, 7.0, 2.0, 3.0, 1.0)):
        worker.read(page(value), start)
        worker.read(page(value + 1.0), start)
    assert f"{A} 23.0" in add_up([worker]).decode()


@pytest.mark.parametrize("first", ["", page(0.0).replace('x="1"', 'x="2"')])
def test_what_a_new_process_has_not_counted_yet_is_not_taken_off_the_sum(first):
    worker = Counts()
    worker.read(page(100.0), 1)
    for told, joined in ((first, 100.0), (page(5.0), 105.0), (page(6.0), 106.0)):
        worker.read(told, 2)
        assert f"{A} {joined}" in add_up([worker]).decode()


def test_a_gauge_ends_with_its_process():
    worker = Counts()
    worker.read(page(1.0), 1)
    worker.read("", 2)
    assert "\nwebhook_dispatcher_broker_connected " not in add_up([worker]).decode()


def test_who_does_not_answer_counts_as_cut_off_and_its_counts_stay():
    alive, silent = Counts(), Counts()
    told = "# TYPE webhook_dispatcher_messages_in_flight gauge\nwebhook_dispatcher_messages_in_flight 7.0\n"
    for worker in (alive, silent):
        worker.read(page(5.0) + told, 1)
    silent.miss()
    joined = add_up([alive, silent]).decode()
    assert "\nwebhook_dispatcher_broker_connected 0.0" in joined
    assert "\nwebhook_dispatcher_messages_in_flight 7.0" in joined
    assert f"{A} 10.0" in joined


class Told(workers._Together):
    """One worker's page, which is asked for and comes while another process takes its place."""

    def __init__(self, worker: workers.Worker) -> None:
        super().__init__([worker], cast("aiohttp.ClientSession", None))
        self.started_meanwhile = 0
        self.value = 0.0

    async def _ask(self, url: str, path: str) -> tuple[int, bytes]:
        self._workers[0].starts += self.started_meanwhile
        return 200, page(self.value).encode()


async def test_a_page_is_left_out_when_nobody_knows_which_process_wrote_it():
    worker = workers.Worker(0, {})
    try:
        pages = Told(worker)
        for value, started_meanwhile, joined in ((7, 0, 7), (2, 1, 7), (3, 0, 10), (4, 0, 11)):
            pages.value, pages.started_meanwhile = value, started_meanwhile
            assert f"{A} {joined:.1f}" in (await pages.metrics()).decode()
    finally:
        worker.close()
