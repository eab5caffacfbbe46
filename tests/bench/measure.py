"""The whole measurement: everything in one run, every figure a row."""

import asyncio
from collections.abc import Callable, Sequence
from statistics import median

from tests.bench.cost import (
    AIO_PIKA,
    AIORMQ,
    DISPATCHER,
    POST,
    Turns,
    bare_consumer,
    measure_cost,
    median_cpu,
    median_rate,
    ratios,
)
from tests.bench.detours import Detour, measure_detour
from tests.bench.events import EVENT_TYPE, Feed, feed
from tests.bench.isolation import measure_isolation
from tests.bench.latency import Latency, measure_latency
from tests.bench.plan import IN_FLIGHT, Plan
from tests.bench.processes import cpu_seconds, resident_bytes
from tests.bench.receiver import Receiver, fastest, hook
from tests.bench.reload import RATE, Reloads, measure_reloads
from tests.bench.report import Report, Row, machine
from tests.bench.scale import Scale, measure_scale
from tests.bench.station import FAN_OUTS, Station, station, subscriptions
from tests.bench.workers import COUNT, Shares, measure_workers

_TITLES = {
    AIO_PIKA: "aio-pika, an ack a message",
    AIORMQ: "aiormq, acks by prefix",
    POST: "requests without a broker",
}
_LATENCY_SHARE = 0.5

Tell = Callable[[str], None]
"""Told what is measured next."""


async def measure(
    url: str, plan: Plan, tell: Tell, *, figures: bool = True, isolation: bool = True
) -> Report:
    """Measure, with the broker at `url`; raises MeasuringError where that fails."""
    report = Report({})
    if figures:
        report = await _figures(url, plan, tell)
    if isolation:
        async with feed(url) as feeding:
            report.machine = report.machine or machine("ward", feeding.broker_version)
            report.isolation = await measure_isolation(url, feeding, plan, tell)
    return report


async def _figures(url: str, plan: Plan, tell: Tell) -> Report:
    """Measure what a delivery costs."""
    async with (
        feed(url) as feeding,
        fastest() as receiver,
        hook() as small,
        station(
            url,
            feeding,
            subscriptions(receiver, small),
            environ={"DISPATCHER_INTAKE_PREFETCH": str(IN_FLIGHT)},
        ) as it,
    ):
        report = Report(machine(receiver.name, feeding.broker_version))
        tell("an idle process")
        report.add(await _idle(it, receiver, plan))
        rate = 0.0
        for fan_out in FAN_OUTS:
            tell(f"fan-out {fan_out}")
            turns = await measure_cost(it, receiver, fan_out, plan)
            report.add(_cost_rows(turns, fan_out))
            if fan_out == 1:
                rate = _LATENCY_SHARE * median_rate(turns[DISPATCHER])
        tell("latency")
        report.add(await _latency(it, small, rate, plan))
        tell("deliveries that fail once, and a busy target")
        for tenant in ("once", "busy"):
            report.add(_detour_rows(tenant, await measure_detour(it, tenant, small, plan)))
        report.add([_memory_after(it)])
        tell(f"{COUNT} workers")
        report.add([_workers_row(await measure_workers(url, feeding, receiver, plan))])
        tell(f"{plan.subscriptions:,} subscriptions")
        report.add(_scale_rows(await measure_scale(plan.subscriptions, plan.matches)))
        tell(f"{plan.subscriptions:,} subscriptions that change")
        report.add(_reload_rows(await measure_reloads(url, feeding, small, plan)))
    return report


async def _idle(it: Station, receiver: Receiver, plan: Plan) -> list[Row]:
    """Measure processes that wait: memory, and CPU time in percent of a core."""
    async with bare_consumer(it, AIO_PIKA, receiver.url(), 1) as bare:
        pids = [it.dispatcher.process.pid, bare.process.pid]
        before = [cpu_seconds(pid) for pid in pids]
        await asyncio.sleep(plan.idle)
        used = [
            100 * (cpu_seconds(pid) - start) / plan.idle
            for pid, start in zip(pids, before, strict=True)
        ]
        memory = [resident_bytes(pid) / 2**20 for pid in pids]
    beside = _TITLES[AIO_PIKA]
    return [
        Row("idle.memory", "idle: memory", "MiB", memory[0], memory[1], beside),
        Row("idle.cpu", "idle: CPU", "%", used[0], used[1], beside),
    ]


def _memory_after(it: Station) -> Row:
    memory = resident_bytes(it.dispatcher.process.pid) / 2**20
    return Row("memory.after", "memory after all that", "MiB", memory)


def _cost_rows(turns: Turns, fan_out: int) -> list[Row]:
    ours = turns[DISPATCHER]
    bare = [kind for kind in turns if kind != DISPATCHER]
    if fan_out == 1:  # a request alone is no delivery: its cost stands in a row of its own
        bare.remove(POST)
    rows = [
        Row(
            f"cpu.fan_out_{fan_out}.{kind}",
            f"CPU of a delivery, fan-out {fan_out}",
            "µs",
            median_cpu(ours),
            median_cpu(turns[kind]),
            _TITLES[kind],
            ratios(ours, turns[kind]),
        )
        for kind in bare
    ]
    if POST in turns and POST not in bare:
        posts = median_cpu(turns[POST])
        rows.append(Row("cpu.post", "CPU of a request", "µs", None, posts, _TITLES[POST]))
    rows += [
        Row(
            f"throughput.fan_out_{fan_out}.{kind}",
            f"deliveries a second, fan-out {fan_out}",
            "/s",
            median_rate(ours),
            median_rate(turns[kind]),
            _TITLES[kind],
        )
        for kind in bare
    ]
    return rows


async def _latency(it: Station, small: Receiver, rate: float, plan: Plan) -> list[Row]:
    feeding: Feed = it.feed
    ours, theirs = [], []

    def publish() -> None:
        feeding.publish(it.exchange, EVENT_TYPE, "arrivals")

    async with bare_consumer(it, AIO_PIKA, small.url("/arrivals"), 1) as bare:
        for _ in range(plan.pairs):
            ours.append(await measure_latency(feeding, publish, small, rate, plan.latency))
            theirs.append(await measure_latency(feeding, bare.publish, small, rate, plan.latency))
    return [
        _latency_row("p50", "median", ours, theirs),
        _latency_row("p99", "99th percentile", ours, theirs),
    ]


def _latency_row(name: str, title: str, ours: Sequence[Latency], theirs: Sequence[Latency]) -> Row:
    """Return the median of the turns, so that what others did on the machine in one does not show."""
    return Row(
        f"latency.{name}",
        f"publish to arrival at {ours[0].rate:,.0f}/s: {title}",
        "ms",
        median(getattr(one, name) for one in ours),
        median(getattr(one, name) for one in theirs),
        _TITLES[AIO_PIKA],
        tuple(getattr(a, name) / getattr(b, name) for a, b in zip(ours, theirs, strict=True)),
    )


def _detour_rows(tenant: str, found: Detour) -> list[Row]:
    title = {"once": "that fails once", "busy": "to a busy target"}[tenant]
    rows = [
        Row(
            f"cpu.{tenant}",
            f"CPU of a delivery {title}",
            "µs",
            median_cpu(found.turns),
            median_cpu(found.direct),
            "the dispatcher, delivering directly",
            found.ratios,
        )
    ]
    if tenant == "busy":
        rows.append(Row("deferrals.busy", "of them put off", "%", 100 * found.deferrals))
    return rows


def _workers_row(found: Shares) -> Row:
    return Row(
        "throughput.workers",
        f"deliveries a second of CPU, {COUNT} workers",
        "/s",
        median(found.all),
        median(found.one),
        "the dispatcher, as one process",
        found.ratios,
    )


def _scale_rows(scale: Scale) -> list[Row]:
    many = f"{scale.subscriptions:,} subscriptions"
    return [
        Row("scale.load", f"{many}: load", "s", scale.load),
        Row("scale.memory", f"{many}: memory", "MiB", scale.resident / 2**20),
        Row("scale.match.uncached", "match of a new type, ten want it", "µs", scale.uncached),
        Row("scale.match.cached", "match of a known type", "µs", scale.cached),
        Row("scale.match.filtered", "match of a known type, ten filters", "µs", scale.filtered),
    ]


def _reload_rows(found: Reloads) -> list[Row]:
    many = f"{found.subscriptions:,} subscriptions"
    return [
        Row("reload.ready", f"{many}: start to ready", "s", found.ready),
        Row("reload.in_force", "a change of one of them: in force after", "s", found.in_force),
        Row(
            "reload.slowest",
            f"slowest event at {RATE:g}/s meanwhile",
            "ms",
            median(found.slowest),
            median(found.slowest_without),
            "the dispatcher, without a change",
        ),
        Row("reload.memory", "memory after the changes", "MiB", found.resident / 2**20),
    ]
